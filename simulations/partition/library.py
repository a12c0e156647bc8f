"""The partitioners of `flwr_datasets`, asked for row numbers.

The library cuts a table in file order, or gives each class's first rows to the first site; so it is given the rows in
an order drawn by the seed, and a sorted file gives no other sites than a shuffled one. Its messages become one line.

About 1 s for 30 000 rows and 20 clients, 4 s for 100 000 and 1 000 (Dirichlet); `label_quantity` draws row by row in
Python and takes about 20 s for 100 000.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from simulations.partition.classes import class_indices
from simulations.partition.site_rows import SiteRows
from tacit.config import Partition
from tacit.data.schema import Schema
from tacit.errors import ConfigError, DataError, MissingExtra

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Rows = NDArray[np.int64]
Divide = Callable[["DataFrame", Schema, Partition, int], list[Rows]]


def partitioners(kind: str) -> Any:
    """The library's module of partitioners."""
    try:
        import flwr_datasets.partitioner as library
    except ImportError:
        raise MissingExtra(f'partition.kind = "{kind}"', "simulation") from None
    return library


def divided(partitioner: Any, settings: Partition, rows: Rows, **columns: NDArray[Any]) -> list[Rows]:
    """What a partitioner of the library gives each site.

    Args:
        partitioner: of `settings.num_clients` sites.
        settings: for the message.
        rows: row numbers, in the order in which the library is to see them.
        columns: what it partitions by, in that order.

    Raises:
        ConfigError: the library refuses, or leaves rows out.
    """
    from datasets import Dataset

    partitioner.dataset = Dataset.from_dict({"row": rows, **columns})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rows that are left out: found below
            parts = [_rows(partitioner.load_partition(i)) for i in range(settings.num_clients)]
    except ValueError as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise ConfigError(f'"{settings.kind}" is not possible here: {reason}', key="partition.kind") from None
    if sum(map(len, parts)) != len(rows):
        raise ConfigError(
            f'"{settings.kind}" would leave {len(rows) - sum(map(len, parts))} of {len(rows)} rows at no site',
            key="partition.kind",
        )
    return parts


def _rows(part: Any) -> Rows:
    return np.array(part["row"], dtype=np.int64)


def _shuffled(table: DataFrame, seed: int) -> Rows:
    return np.random.default_rng(seed).permutation(len(table)).astype(np.int64)


def label_skew(classes: Rows, settings: Partition, seed: int) -> list[Rows]:
    """Divides each class by shares from a symmetric Dirichlet (Yurochkin et al. 2019, arXiv 1905.12022)."""
    # The library meets a minimum size by drawing again, ten times at most, with a warning each: with alpha
    # 0.1 and 570 rows for 10 clients it never got there. So it is asked for none; `top_up` sees to that.
    partitioner = partitioners("dirichlet").DirichletPartitioner(
        settings.num_clients, "class", settings.alpha, min_partition_size=0, seed=seed
    )
    return divided(partitioner, settings, np.arange(len(classes)), **{"class": classes})


def top_up(parts: list[Rows], min_rows: int) -> list[Rows]:
    """Moves rows, one by one from whichever site has most, to the sites below `min_rows`.

    The rows of a part are in random order, so that its last one is a random one. Ends because sites have at
    least `min_rows` rows on average, so while one site has fewer another has more.
    """
    lists = [part.tolist() for part in parts]
    sizes = np.array([len(part) for part in parts])
    for poor in np.flatnonzero(sizes < min_rows):
        while sizes[poor] < min_rows:
            rich = sizes.argmax()
            lists[poor].append(lists[rich].pop())
            sizes[poor] += 1
            sizes[rich] -= 1
    return [np.array(part, dtype=np.int64) for part in lists]


def uneven_sizes(num_rows: int, settings: Partition, alpha: float, rng: np.random.Generator) -> Rows:
    """`min_rows` for each site; the rest divided by proportions from a symmetric Dirichlet."""
    k = settings.num_clients
    spare = num_rows - k * settings.min_rows
    sizes: Rows = settings.min_rows + rng.multinomial(spare, rng.dirichlet(np.full(k, alpha)))
    return sizes


def _label_quantity(table: DataFrame, schema: Schema, settings: Partition, seed: int) -> list[Rows]:
    """Sites of unequal size, each with a class mix of its own from a Dirichlet (Acar et al. 2021)."""
    rng = np.random.default_rng(seed)
    sizes = np.array(settings.sizes or uneven_sizes(len(table), settings, settings.size_alpha, rng))
    _check_sum(sizes, len(table))
    rows = _shuffled(table, seed)
    classes, present = np.unique(class_indices(table, schema)[rows], return_inverse=True)
    alpha = np.full(len(classes), settings.alpha)
    partitioner = partitioners(settings.kind).InnerDirichletPartitioner(sizes, "class", alpha, seed=seed)
    with np.errstate(invalid="raise", divide="raise"):
        try:
            return divided(partitioner, settings, rows, **{"class": present})
        except FloatingPointError:  # a site wanted one class only, and there is none of it left
            raise ConfigError(
                f"so small that sites want more of a class than there is: above {settings.alpha:g}",
                key="partition.alpha",
            ) from None


def _pathological(table: DataFrame, schema: Schema, settings: Partition, seed: int) -> list[Rows]:
    """So many classes per site, no more (McMahan et al. 2017); the first of a site goes round, for none is left out."""
    rows = _shuffled(table, seed)
    partitioner = partitioners(settings.kind).PathologicalPartitioner(
        settings.num_clients, "class", settings.classes_per_client, "first-deterministic", seed=seed
    )
    return divided(partitioner, settings, rows, **{"class": class_indices(table, schema)[rows]})


def _shard(table: DataFrame, schema: Schema, settings: Partition, seed: int) -> list[Rows]:
    """Sorted by class and cut into shards, a few for each site (McMahan et al. 2017)."""
    rows = _shuffled(table, seed)
    # Rounded up, and the last one kept though it be short: the library's own way leaves the rest of a division out.
    size = -(-len(rows) // (settings.num_clients * settings.shards_per_client))
    partitioner = partitioners(settings.kind).ShardPartitioner(
        settings.num_clients, "class", shard_size=size, keep_incomplete_shard=True, seed=seed
    )
    return divided(partitioner, settings, rows, **{"class": class_indices(table, schema)[rows]})


def _distribution(table: DataFrame, schema: Schema, settings: Partition, seed: int) -> list[Rows]:
    """So many classes per site, in sizes by a log-normal power law (Li et al. 2020, arXiv 1812.06127)."""
    classes, per_client = class_indices(table, schema), settings.classes_per_client
    num_classes, k = len(np.unique(classes)), settings.num_clients
    if per_client > num_classes or k % num_classes:
        raise ConfigError(
            f'"distribution" needs clients in a multiple of the {num_classes} classes that occur, and at most so '
            "many per client",
            key="partition.num_clients" if per_client <= num_classes else "partition.classes_per_client",
        )
    rng, rows = np.random.default_rng(seed), _shuffled(table, seed)
    array = rng.lognormal(0.0, settings.sigma, (num_classes, per_client * k // num_classes))
    fewest = -(-settings.min_rows // per_client)
    partitioner = partitioners(settings.kind).DistributionPartitioner(
        array, k, per_client, "class", fewest, seed=seed
    )
    return divided(partitioner, settings, rows, **{"class": classes[rows]})


def _continuous(table: DataFrame, schema: Schema, settings: Partition, seed: int) -> list[Rows]:
    """In the order of a column, blurred by noise: by age, by amount, by time."""
    if settings.column not in table.columns:
        raise ConfigError(f"the table has no column {settings.column!r}", key="partition.column")
    rows = _shuffled(table, seed)
    values = points(table[settings.column])[rows]
    partitioner = partitioners(settings.kind).ContinuousPartitioner(
        settings.num_clients, "value", settings.strictness, seed=seed
    )
    return divided(partitioner, settings, rows, value=(values - values.mean()).astype(np.float32))


def _sizes(table: DataFrame, schema: Schema, settings: Partition, seed: int) -> list[Rows]:
    """Stated sizes."""
    _check_sum(np.array(settings.sizes), len(table))
    return divided(
        partitioners(settings.kind).SizePartitioner(settings.sizes), settings, _shuffled(table, seed)
    )


def _graded(table: DataFrame, schema: Schema, settings: Partition, seed: int) -> list[Rows]:
    """Sizes in proportion to the number of the site, its square, or e to its power."""
    kind = f"{settings.kind.capitalize()}Partitioner"
    partitioner = getattr(partitioners(settings.kind), kind)(settings.num_clients)
    return top_up(divided(partitioner, settings, _shuffled(table, seed)), settings.min_rows)


def grouped(column: Series[Any], settings: Partition) -> list[SiteRows]:
    """Values of a column in groups of `group_size`, in their order: wards become hospitals; the last may be smaller."""
    import pandas

    codes, values = pandas.factorize(column, sort=True)
    partitioner = partitioners(settings.kind).GroupedNaturalIdPartitioner(
        "code", settings.group_size, "allow-smaller", sort_unique_ids=True
    )
    count = -(-len(values) // settings.group_size)
    counted = settings.model_copy(update={"num_clients": count})
    parts = divided(partitioner, counted, np.arange(len(codes)), code=codes.astype(np.int64))
    labels = (values[i * settings.group_size : (i + 1) * settings.group_size] for i in range(count))
    return [
        SiteRows(str(names[0]) if len(names) == 1 else f"{names[0]} to {names[-1]}", np.sort(rows))
        for names, rows in zip(labels, parts, strict=True)
    ]


def points(column: Series[Any]) -> NDArray[np.float64]:
    """A column of numbers or of dates as points on a line, shape (rows,).

    Raises:
        DataError: it is neither, or a cell is empty.
    """
    import pandas

    numbers = pandas.to_numeric(column, errors="coerce")
    if numbers.isna().any():
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # a format that pandas cannot infer from the first cell
            dates = pandas.to_datetime(column, errors="coerce")
        numbers = dates.astype("int64").where(dates.notna()).astype("float64") / 1e9
    if missing := int(numbers.isna().sum()):
        raise DataError(f"{missing} rows are neither a number nor a date", column=str(column.name))
    on_the_line: NDArray[np.float64] = numbers.to_numpy(dtype=np.float64)
    return on_the_line


def _check_sum(sizes: NDArray[Any], num_rows: int) -> None:
    if sizes.sum() != num_rows:
        raise ConfigError(f"are {sizes.sum()} rows together, the table has {num_rows}", key="partition.sizes")


LIBRARY: Final[Mapping[str, Divide]] = {
    "label_quantity": _label_quantity,
    "pathological": _pathological,
    "shard": _shard,
    "distribution": _distribution,
    "continuous": _continuous,
    "sizes": _sizes,
    "linear": _graded,
    "square": _graded,
    "exponential": _graded,
}
