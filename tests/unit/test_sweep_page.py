"""The page of a sweep: what it says, what it shows, and that no text of an experiment becomes markup."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tacit.metric_names import limits
from tacit.report import sweep_plots
from tacit.report.sweep_html import render_sweep
from tacit.report.sweep_record import SweepCell
from tests.unit.sweep_records import sweep_record

EPSILONS = {"privacy.record.epsilon": [1, 3, 8, "none"], "seed": [1, 2, 3]}


def section(page: str, name: str) -> str:
    start = page.index(f'id="{name}"')
    return page[start : page.index("</section>", start)]


def test_it_says_that_all_of_it_is_simulation_and_what_choosing_on_private_data_would_cost() -> None:
    page = render_sweep(sweep_record(EPSILONS))
    statement = section(page, "statement")
    assert "simulations on data at hand" in statement
    assert "promise epsilon 36 and delta" in statement  # 3 x (1 + 3 + 8)
    assert "is not the price of having chosen it" in statement
    marked = page.split("<section ")
    assert all(
        "simulation only" in part for part in marked[1:] if 'data-mark="simulation"' in part.split(">")[0]
    )
    assert "promise epsilon" not in render_sweep(sweep_record({"partition.alpha": [0.1, 1.0], "seed": [1]}))


def test_it_draws_utility_rounds_gains_and_cost_and_needs_nothing_from_outside() -> None:
    page = render_sweep(sweep_record({**EPSILONS, "training.clients_per_round": [5, 20]}))
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert titles == [
        "auroc against epsilon",
        "Rounds to auroc 0.888",
        "Gain of each site in auroc",
        "Seconds of a round on this machine",
        "Sent by one client in a round",
    ]
    assert page.count("<svg") == 5
    assert not re.findall(r"https?://", page) and "<script" not in page
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_the_band_of_a_share_ends_where_a_share_does(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: dict[str, Any] = {}
    drawn = sweep_plots.svg_of
    monkeypatch.setattr(
        sweep_plots, "svg_of", lambda figure, name: figures.setdefault(name, figure) and drawn(figure, name)
    )
    record = sweep_record({"privacy.record.epsilon": [1, 8], "seed": [1, 2]})
    cells = [
        cell.model_copy(update={"metrics": {"auroc": 0.9 + 0.1 * (i % 2)}})
        for i, cell in enumerate(record.cells)
    ]
    [found] = {
        group.band([c.metrics["auroc"] for c in group.cells])
        for group in record.model_copy(update={"cells": tuple(cells)}).groups()
    }
    assert found is not None and found.high is not None and found.high > 1.5, (
        "Student's interval of two runs is wide"
    )
    render_sweep(record.model_copy(update={"cells": tuple(cells)}))
    [axes] = figures["utility"].axes
    [band] = [path for collection in axes.collections for path in collection.get_paths()]
    assert band.vertices[:, 1].min() >= 0 and band.vertices[:, 1].max() == 1
    assert axes.get_ylim()[1] <= 1.02
    assert limits("balanced_accuracy") == (0, 1) and limits("r2")[1] == 1 and limits("loss")[1] > 1e9


def test_losers_are_counted_and_the_worst_is_named_where_a_site_stays_the_same() -> None:
    record = sweep_record({"privacy.record.epsilon": [1, 8], "seed": [1, 2]}, is_natural=True)
    page = render_sweep(record)
    losing = sum(gain < 0 for cell in record.cells[:2] for gain in cell.gains.values() if gain is not None)
    assert f'class="loss">{losing}</td>' in page
    assert "Site by site" in page
    # Under one name another draw of rows: a mean over seeds would be of nothing.
    assert "Site by site" not in render_sweep(record.model_copy(update={"is_natural": False}))


def test_failed_cells_stand_first_and_are_in_no_figure() -> None:
    record = sweep_record(EPSILONS)
    failed = SweepCell.failed("bad", {"privacy.record.epsilon": 1, "seed": 1}, "no update <arrived>")
    page = render_sweep(record.model_copy(update={"cells": (failed, *record.cells[1:])}))
    assert page.index("1 of 12 cells failed") < page.index('id="result"')
    assert "no update &lt;arrived&gt;" in page and "<arrived>" not in page


def test_text_of_an_experiment_is_text() -> None:
    wild = "<b>ünß & 'x' 漢 $a$</b>"
    page = render_sweep(sweep_record({"task.options.mode": [wild, "b"], "seed": [1, 2]}, name=wild))
    assert "<b>ün" not in page and "&lt;b&gt;ün" in page


@pytest.mark.parametrize("axes", [{"seed": [1]}, {"seed": [1, 2]}, {"task.model.hidden": [[8], [4, 4]]}])
def test_small_and_odd_sweeps_have_a_page_too(axes: dict[str, list[object]]) -> None:
    assert "auroc" in render_sweep(sweep_record(axes))


def test_a_sweep_of_which_nothing_is_left_has_a_page_too() -> None:
    record = sweep_record({"seed": [1, 2]})
    cells = tuple(SweepCell.failed(cell.name, cell.values, "x") for cell in record.cells)
    assert "2 of 2 cells failed" in render_sweep(
        record.model_copy(update={"cells": cells, "main": "", "target": None})
    )
