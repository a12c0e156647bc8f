"""Which way predictions lean on concepts: testing with concept activation vectors (TCAV, Kim et al. 2018).

A concept is declared in the experiment: a column above or below a number, or of one category. From the schema and the
run's seed each site makes up the same records, that are so and that are not, and takes what lies between their means
in the last hidden layer for the concept's direction. Of each held-out record: whether the odds of the class that is
predicted rise along it. The sum over records, by predicted class, gives the share of records for which they do.

A direction is the normal of the nearest-mean classifier, which unlike a logistic one is not turned by what units have
in common (Haufe et al. 2014; Pahde et al. 2022). It is taken several times, of other records that were made up: of a
concept that the model does not know it points either way by chance, and the score is near one half.

The model is one that training has paid for, and directions are made from it alone (post-processing; Dwork and Roth
2014, proposition 2.1), so that what is left to be paid for is one bounded contribution per record.

Guarantees:
    One record's vector over all concepts has a norm of at most 1, whatever the model says of it.
    Directions are made of the model, the experiment and its seed alone: no record touches them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tacit.config import Concept, Experiment
from tacit.data.preprocessing import Constants
from tacit.data.schema import CategoricalColumn, NumericColumn, Schema, match_key
from tacit.errors import ConfigError, did_you_mean
from tacit.privacy.noise import SeededKeys, Stream
from tacit.tasks.measures import SIGNIFICANT

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tacit.tasks.task import Records, Task

PREFIX: Final = "concepts/"
DIRECTIONS: Final = 30  # of each concept
MADE_UP: Final = 100  # records on either side of each direction
CHANCE: Final = 1 / math.sqrt(DIRECTIONS)  # two standard deviations of the mean of as many fair coins
MOST_SUMS: Final = 4096
AT_A_TIME: Final = 1024  # records
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Concepts:
    """The concepts of one experiment: public, the same at every site.

    Attributes:
        declared: by name.
        schema: of the table.
        constants: center and scale of a federated scaling; None where the schema declares them.
        seed: of the run.
    """

    declared: Mapping[str, Concept]
    schema: Schema
    constants: Constants | None
    seed: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the sums: concepts x predicted classes x (towards, away)."""
        return len(self.declared), len(self.schema.classes), 2

    @property
    def names(self) -> tuple[str, ...]:
        """What the sums are called among the metrics that travel."""
        return tuple(f"{PREFIX}{i}" for i in range(math.prod(self.shape)))

    @property
    def squared_norm(self) -> int:
        """See the guarantee."""
        return 1

    def sums(self, model: nn.Module, outputs: Tensor, records: Records) -> dict[str, float]:
        """See `Summed`."""
        total = np.zeros(math.prod(self.shape))
        for start in range(0, records.num_rows, AT_A_TIME):
            each = self.contributions(model, records.features[start : start + AT_A_TIME])
            total += each.sum(0).flatten().numpy()
        return dict(zip(self.names, total.tolist(), strict=True))

    def contributions(self, model: nn.Module, features: Tensor) -> Tensor:
        """Of each record, shape (rows, *shape), float64: 0 but for the class that is predicted.

        There it is the share of the directions along which its odds rise, and of those along which they fall, over
        the root of the number of concepts. Where they do neither it is half and half.
        """
        import torch

        before, after = _halves(model)
        device = next(model.parameters()).device
        directions = self._directions(before, device)
        with torch.no_grad():
            hidden = before(features.to(device))
        slopes, predicted = (found.cpu() for found in _slopes(after, hidden))
        along = torch.einsum("rw,cdw->rcd", slopes.double(), directions)
        lean = along.sign().nan_to_num(0.0).mean(-1)
        sides = torch.stack([1 + lean, 1 - lean], dim=-1) / 2
        found = torch.zeros(len(features), *self.shape, dtype=torch.float64)
        found[torch.arange(len(features)), :, predicted] = sides / math.sqrt(len(self.declared))
        return found

    def _directions(self, before: nn.Module, device: torch.device) -> Tensor:
        """From the mean of records without a concept to that of records with it, (concepts, DIRECTIONS, width)."""
        import torch

        names = tuple(self.schema.columns)
        draws = Stream(SeededKeys(self.seed).key("concepts")).uniform((2, DIRECTIONS, MADE_UP, len(names)))
        common = {name: self._block(name, draws[..., i]) for i, name in enumerate(names)}
        found = []
        for concept in self.declared.values():
            own = draws[..., names.index(concept.column)]
            sides = [self._block(concept.column, own[i], concept, holds=bool(i)) for i in range(2)]
            columns = {**common, concept.column: np.stack(sides)}
            made_up = torch.from_numpy(np.concatenate(list(columns.values()), axis=-1)).float()
            with torch.no_grad():
                without, having = before(made_up.to(device)).double().mean(2).cpu()
            found.append(having - without)
        return torch.stack(found)

    def _block(
        self, name: str, draws: Floats, concept: Concept | None = None, *, holds: bool = True
    ) -> Floats:
        """Features of one column from draws in [0, 1): any it may have, or those that are as a concept says, or not.

        Numbers are spread evenly over what the schema declares, after its transform; names are equally frequent.
        """
        column = self.schema.columns[name]
        if isinstance(column, CategoricalColumn):
            wanted = None if concept is None else match_key(str(concept.equals))
            allowed = [
                i for i, other in enumerate(column.categories)
                if wanted is None or (match_key(other) == wanted) == holds
            ]  # fmt: skip
            if not allowed:  # the only category there is: without it a cell is empty
                return np.zeros((*draws.shape, len(column.categories)))
            chosen = np.array(allowed)[(draws * len(allowed)).astype(int)]
            one_hot: Floats = np.eye(len(column.categories))[chosen]
            return one_hot
        center, scale = self.constants[name] if self.constants else column.affine()
        low, high = _ends(column, center, scale)
        if concept is not None:
            value = min(max(column.transformed(concept.threshold), low), high)
            low, high = (value, high) if (concept.above is not None) == holds else (low, value)
        scaled = np.clip((low + draws * (high - low) - center) / scale, -column.clip, column.clip)
        return np.stack([scaled, np.zeros_like(scaled)][: 1 + column.indicator], axis=-1)


class Scores(NamedTuple):
    """What sums say of concepts.

    Attributes:
        shares: of the records predicted as each class, how often its odds rise along each concept; concepts x classes,
            None where it could not be told from one half.
        noise: standard deviation of a share of each class; None likewise.
    """

    shares: tuple[tuple[float | None, ...], ...]
    noise: tuple[float | None, ...]


def scores_of(concepts: Concepts, sums: Mapping[str, float], noise: float) -> Scores | None:
    """Shares from sums with noise of this standard deviation in each; None where the sums are not all there."""
    if not all(name in sums for name in concepts.names):
        return None
    root = math.sqrt(len(concepts.declared))
    values = root * np.array([sums[name] for name in concepts.names]).reshape(concepts.shape)
    records = values.sum(-1).mean(0)  # each concept has counted all of them
    told = (records > 0) & (SIGNIFICANT * noise * root / math.sqrt(2) <= records / 2)
    records = np.where(told, records, 1.0)
    shares = np.clip(0.5 + (values[..., 0] - values[..., 1]) / (2 * records), 0.0, 1.0)
    spread = noise * root / math.sqrt(2) / records
    return Scores(
        tuple(tuple(float(s) if t else None for s, t in zip(row, told, strict=True)) for row in shares),
        tuple(float(s) if t else None for s, t in zip(spread, told, strict=True)),
    )


def concepts_of(experiment: Experiment, task: Task) -> Concepts | None:
    """The concepts that an experiment declares; None where it declares none.

    Args:
        experiment: whose `[evaluation.concepts]` it is.
        task: its task, with the constants of a federated scaling where records are to be made up.

    Raises:
        ConfigError: the task or the model can have none, a concept is none of this schema, or they are too many.
    """
    declared, schema = experiment.evaluation.concepts, experiment.data.columns
    if not declared:
        return None
    if experiment.task.kind != "tabular" or schema is None:
        raise ConfigError(
            'are for kind = "tabular": of arrays and texts no schema says what a record with a concept looks like, and '
            "a site's own records may not",
            key="evaluation.concepts",
        )
    if experiment.task.model.name == "logistic":
        raise ConfigError(
            'need a hidden layer, and "logistic" has none: its weights say which way each column counts',
            key="evaluation.concepts",
        )
    for name, concept in declared.items():
        _check(schema, concept, f"evaluation.concepts.{name}")
    concepts = Concepts(declared, schema, getattr(task, "constants", None), experiment.seed)
    if math.prod(concepts.shape) > MOST_SUMS:
        raise ConfigError(
            f"{math.prod(concepts.shape)} sums would travel, {MOST_SUMS} is the most: fewer concepts or classes",
            key="evaluation.concepts",
        )
    return concepts


def _check(schema: Schema, concept: Concept, key: str) -> None:
    column = schema.columns.get(concept.column)
    if column is None:
        raise ConfigError(
            f"{concept.column!r} is no column of data.schema{did_you_mean(concept.column, schema.columns)}",
            key=f"{key}.column",
        )
    if isinstance(column, CategoricalColumn):
        if concept.equals is None:
            raise ConfigError(f'{concept.column!r} has categories: say equals = "NAME"', key=key)
        if match_key(concept.equals) not in map(match_key, column.categories):
            raise ConfigError(
                f"{concept.equals!r} is no category of {concept.column!r}"
                + did_you_mean(concept.equals, column.categories),
                key=f"{key}.equals",
            )
        return
    if concept.equals is not None:
        raise ConfigError(f"{concept.column!r} is a number: say above or below", key=f"{key}.equals")
    low, high = _ends(column, *column.affine())
    if not low < column.transformed(concept.threshold) < high:
        raise ConfigError(
            f"{concept.threshold:g} is not within what the schema declares of {concept.column!r}: records would all be "
            "so, or none",
            key=f"{key}.{'below' if concept.above is None else 'above'}",
        )


def _ends(column: NumericColumn, center: float, scale: float) -> tuple[float, float]:
    """The lowest and highest number that the schema declares and the model tells apart, after the transform."""
    low, high = center - column.clip * scale, center + column.clip * scale
    if column.range is None:
        return low, high
    first, last = (column.transformed(end) for end in column.range)
    return max(low, first), min(high, last)


def _halves(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A stack of layers up to its last hidden one, before that one's activation, and the rest.

    After the activation a single Linear layer may follow, along which the slope would be the same for all records.
    """
    from torch import nn

    layers = list(model.children())
    weighty = [i for i, layer in enumerate(layers) if any(True for _ in layer.parameters())]
    cut = weighty[-2] + 1
    return nn.Sequential(*layers[:cut]), nn.Sequential(*layers[cut:])


def _slopes(after: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the log-odds of the class that is predicted, shape (rows, width), and these classes.

    Of the odds and not of the logit, which means nothing by itself: the same may be added to all of them.
    """
    import torch

    hidden = hidden.detach().requires_grad_()
    logits = after(hidden)
    predicted = logits.argmax(-1)
    chosen = torch.nn.functional.one_hot(predicted, logits.shape[-1]).bool()
    odds = logits[chosen] - logits.masked_fill(chosen, -math.inf).logsumexp(-1)
    (slopes,) = torch.autograd.grad(odds.sum(), hidden)
    return slopes, predicted
