"""How far sites are from one another: what is 0, what is 1, and what stands on the page."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from simulations.partition.distances import MOST_SITES, distances
from tacit.data.schema import Schema
from tacit.report.html import render_html
from tacit.report.record import SiteDistances
from tests.unit.report_records import run_record

SCHEMA = Schema.model_validate(
    {
        "label": "sick",
        "columns": {
            "age": {"kind": "numeric", "range": [0, 100]},
            "ward": {"kind": "categorical", "categories": ["a", "b"]},
        },
    }
)


def site(age: float, ward: str, sick: int, rows: int = 40) -> pd.DataFrame:
    ages = age + np.linspace(-10, 10, rows)
    return pd.DataFrame({"age": ages, "ward": [ward] * rows, "sick": [sick] * rows})


def apart(*frames: pd.DataFrame) -> SiteDistances:
    found = distances(frames, [f"site-{i}" for i in range(len(frames))], SCHEMA)
    assert found is not None
    return found


def test_the_same_is_0_and_nothing_in_common_is_1() -> None:
    found = apart(site(30, "a", 0), site(30, "a", 0), site(30, "b", 1))
    assert found.labels == ((0, 0, 1), (0, 0, 1), (1, 1, 0))
    assert np.allclose(
        found.features, [[0, 0, 0.5], [0, 0, 0.5], [0.5, 0.5, 0]]
    )  # one of two columns differs


def test_half_of_a_range_is_1_and_the_mean_is_over_columns() -> None:
    found = apart(site(20, "a", 0), site(70, "a", 0))
    assert found.features[0][1] == pytest.approx(0.5)  # 50 of 100 years, in one of two columns


def test_missing_cells_and_unknown_names_are_what_the_model_makes_of_them() -> None:
    empty = site(50, "a", 0).assign(age=np.nan)
    assert apart(site(50, "a", 0), empty).features[0][1] == pytest.approx(
        0.05, abs=0.003
    )  # 0.1 from the middle
    assert apart(site(50, "a", 0), site(50, "c", 0)).features[0][1] == pytest.approx(0.5)


def test_one_site_has_no_distance_and_many_are_cut() -> None:
    assert distances([site(1, "a", 0)], ["x"], SCHEMA) is None
    assert len(apart(*[site(30, "a", 0)] * (MOST_SITES + 5)).sites) == MOST_SITES


def test_the_page_names_the_two_that_are_farthest_apart_and_a_deployment_cannot_record_it() -> None:
    found = SiteDistances(sites=("<a>", "b", "c"), labels=((0, 0.1, 0.2), (0.1, 0, 0.7), (0.2, 0.7, 0)))
    page = render_html(run_record(distances=found))
    assert "farthest apart are b and c (0.70)" in page and "0.33 on average" in page
    assert "&lt;a&gt;" in page and "<a>" not in page
    with pytest.raises(ValueError, match="distances"):
        run_record(engine="superlink", distances=found)
