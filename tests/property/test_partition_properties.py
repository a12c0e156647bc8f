"""Whatever the table and the settings: no row is lost or repeated, and no site is too small."""

from __future__ import annotations

import csv
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.partition import partition
from simulations.partition.folders import csv_text
from simulations.partition.split import held_out
from tacit.config import Partition
from tacit.data.schema import Schema
from tacit.errors import ConfigError

SCHEMA = Schema.model_validate(
    {"label": "y", "columns": {"x": {"kind": "numeric", "range": [-2, 3]}}, "classes": ["0", "1", "2"]}
)
SETTINGS = st.builds(
    Partition,
    kind=st.sampled_from(["iid", "dirichlet", "quantity", "feature_shift"]),
    num_clients=st.integers(1, 12),
    alpha=st.floats(1e-6, 1e6),
    min_rows=st.integers(1, 20),
    shift=st.floats(0, 10),
)


@settings(max_examples=150, deadline=None)
@given(SETTINGS, st.lists(st.integers(0, 2), min_size=1, max_size=120), st.integers(0, 2**63 - 1))
def test_every_row_is_at_exactly_one_site_and_no_site_has_fewer_than_min_rows(
    chosen: Partition, labels: list[int], seed: int
) -> None:
    table = pd.DataFrame({"x": np.linspace(-2, 3, len(labels)), "y": labels})
    if chosen.num_clients * chosen.min_rows > len(labels):
        with pytest.raises(ConfigError, match="min_rows"):
            partition(table, SCHEMA, chosen, seed)
        return
    sites = partition(table, SCHEMA, chosen, seed)
    assert sorted(np.concatenate([s.rows for s in sites])) == list(range(len(labels)))
    assert len(sites) == chosen.num_clients and min(len(s.rows) for s in sites) >= chosen.min_rows
    again = partition(table, SCHEMA, chosen, seed)
    for site, other in zip(sites, again, strict=True):
        assert site.label == other.label and site.take(table).equals(other.take(table))
        assert site.take(table)["x"].between(-2, 3).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=80), st.floats(0, 0.9), st.integers(0, 2**32 - 1))
def test_a_split_holds_out_the_stated_share_and_no_class_is_out_by_more_than_one_row(
    labels: list[int], fraction: float, seed: int
) -> None:
    classes = np.array(labels)
    num_test = int(np.ceil(fraction * len(labels)))
    if num_test == len(labels):
        return
    test, warning = held_out(classes, fraction, seed)
    assert test.sum() == num_test
    if not warning and num_test:
        for label in set(labels):
            rows = classes == label
            assert abs(test[rows].sum() - rows.sum() * num_test / len(labels)) <= 1 + 1e-9


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(FLOATS, st.floats(width=32, allow_nan=False, allow_infinity=False), TEXTS), min_size=1)
)
def test_every_value_reads_back_as_the_value_it_was(rows: list[tuple[float, float, str]]) -> None:
    frame = pd.DataFrame(rows, columns=["wide", "narrow", "text"]).astype({"narrow": "float32"})
    read = list(csv.reader(io.StringIO(csv_text(frame), newline="")))[1:]
    assert [(float(a).hex(), float(b).hex(), c) for a, b, c in read] == [
        (a.hex(), b.hex(), c) for a, b, c in rows
    ]
