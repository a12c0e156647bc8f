"""What holds for every file: the guarantees of the data layer, word for word."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.data.preprocessing import transform
from tacit.data.readers import read_table
from tacit.data.schema import CategoricalColumn, NumericColumn, Schema
from tacit.data.statistics import MIN_SPREAD, constants_from, record_statistics, sensitivity, sum_statistics
from tacit.errors import DataError

CLIP = 2.5
SCHEMA = Schema(
    label="y",
    columns={
        "plain": NumericColumn(kind="numeric", range=(-5, 5), clip=CLIP, indicator=True),
        "log": NumericColumn(kind="numeric", transform="log", range=(-1e6, 1e6), clip=CLIP),
        "name": CategoricalColumn(kind="categorical", categories=("red", "1")),
    },
)
CONSTANTS = {"plain": (0.3, 0.7), "log": (2.0, 1.5)}

numbers = st.floats(allow_nan=False, allow_infinity=False).map(repr)
cells = st.one_of(numbers, st.integers(-10, 10).map(str), st.just(""))
rows = st.tuples(cells, cells, st.sampled_from(["red", "1.0", "green", ""]), st.sampled_from(["0", "1"]))


def table(lines: list[tuple[str, ...]], schema: Schema = SCHEMA):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "site.csv"
        path.write_text("\n".join(["plain,log,name,y", *map(",".join, lines)]) + "\n")
        return read_table(path, schema)


@settings(deadline=None, max_examples=150)
@given(st.lists(rows, min_size=1, max_size=40), rows, st.data(), st.booleans())
def test_adding_a_row_leaves_the_features_of_all_other_rows_bit_equal(lines, added, data, federated) -> None:
    position = data.draw(st.integers(0, len(lines)))
    constants = CONSTANTS if federated else None
    before, labels_before = transform(table(lines), SCHEMA, split="train", constants=constants)
    longer = [*lines[:position], added, *lines[position:]]
    after, labels_after = transform(table(longer), SCHEMA, split="train", constants=constants)
    assert np.delete(after, position, axis=0).tobytes() == before.tobytes()
    assert np.delete(labels_after, position).tolist() == labels_before.tolist()


@settings(deadline=None, max_examples=150)
@given(st.lists(rows, min_size=1, max_size=20))
def test_every_feature_is_finite_and_within_the_clip(lines) -> None:
    features, _ = transform(table(lines), SCHEMA, split="train")
    assert np.isfinite(features).all()
    assert np.abs(features).max() <= CLIP


@settings(deadline=None, max_examples=150)
@given(st.lists(rows, min_size=1, max_size=20), rows)
def test_one_record_moves_the_statistics_by_at_most_the_sensitivity(lines, added) -> None:
    vectors = record_statistics(table([*lines, added]), SCHEMA)
    assert np.linalg.norm(vectors, axis=1).max() <= sensitivity(SCHEMA) * (1 + 1e-12)
    moved = sum_statistics(table([*lines, added]), SCHEMA) - sum_statistics(table(lines), SCHEMA)
    assert np.linalg.norm(moved) <= sensitivity(SCHEMA) * (1 + 1e-9)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=6, max_size=6))
def test_constants_stay_inside_the_range_however_noisy_the_sums_are(sums) -> None:
    for name, (center, scale) in constants_from(np.array(sums, dtype=np.float64), SCHEMA).items():
        column = SCHEMA.columns[name]
        assert isinstance(column, NumericColumn)
        middle, half = column.range_affine()
        assert abs(center - middle) <= half * (1 + 1e-12)
        assert MIN_SPREAD * half * (1 - 1e-12) <= scale <= half


HEADER = b"plain,log,name,y\n"
structured = st.lists(
    st.sampled_from(
        [b"1", b"0", b",", b",", b"\n", b"\r\n", b'"', b"red", b"-1e9", b"inf", b"\xff", b"\0", b" ", b"?"]
    )
).map(b"".join)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@settings(deadline=None, max_examples=300)
@given(content=st.one_of(st.binary(max_size=200), structured.map(lambda body: HEADER + body)))
def test_H7_any_bytes_are_a_table_or_a_data_error(suffix: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"site{suffix}"
        path.write_bytes(content)
        try:
            features, labels = transform(read_table(path, SCHEMA), SCHEMA, split="train")
        except DataError:
            return
    assert len(features) == len(labels) > 0
