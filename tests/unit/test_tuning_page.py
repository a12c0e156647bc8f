"""The page of a search: what it says that choosing has cost, and that it tells no more than was paid for."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tacit.report.tuning_html import render_tuning
from tacit.report.tuning_record import Selection, TuningRecord, TuningTrial

SPACE = {
    "training.learning_rate": "0.1 to 10, by logarithm",
    "training.local_steps": "whole numbers 1 to 5",
    "task.model.hidden": "[8], [16, 8]",
}


def trials(count: int = 12, epsilon: float = 3.0) -> tuple[TuningTrial, ...]:
    rng = np.random.default_rng(3)
    return tuple(
        TuningTrial(
            name=f"{number:04}",
            values={
                "training.learning_rate": float(10 ** rng.uniform(-1, 1)),
                "training.local_steps": int(rng.integers(1, 6)),
                "task.model.hidden": [8] if rng.random() < 0.5 else [16, 8],
            },
            outcome="finished",
            value=0.8 + 0.1 * float(rng.random()),
            metrics={"auroc": 0.8, "loss": 0.4},
            epsilon=epsilon,
            delta=1e-5 if math.isfinite(epsilon) else 0.0,
            seconds=1.25,
        )
        for number in range(1, count + 1)
    )


def searched(rows: tuple[TuningTrial, ...] = (), **changes: Any) -> TuningRecord:
    rows = rows or trials()
    fields: dict[str, Any] = {
        "name": "banks",
        "started": datetime(2026, 3, 4, 5, 6, tzinfo=UTC),
        "method": "random",
        "space": SPACE,
        "logarithmic": ("training.learning_rate",),
        "metric": "auroc",
        "seed": 0,
        "trials": rows,
        "best": max((t for t in rows if t.value is not None), key=lambda t: t.value or 0.0, default=None),
        "importances": {"training.learning_rate": 0.7, "task.model.hidden": 0.3},
    }
    return TuningRecord(**{**fields, **changes})


def paid(**changes: Any) -> TuningRecord:
    best = trials()[0].model_copy(update={"name": "", "seconds": 0.0})
    cost = Selection(epsilon=7.12341, delta=1e-5, mean=10, eta=1.0)
    fields = {
        "trials": (),
        "importances": {},
        "seed": None,
        "best": best,
        "accounting": "private",
        "selection": cost,
    }
    return searched(**{**fields, **changes})


def section(page: str, name: str) -> str:
    start = page.index(f'id="{name}"')
    return page[start : page.index("</section>", start)]


def test_the_page_says_what_the_choice_cost() -> None:
    silent = render_tuning(searched())
    assert "Not accounted for" in silent[: silent.index('id="result"')]
    statement = section(silent, "statement")
    assert "<strong>not accounted for</strong>" in statement
    assert "all 12 private models would, by plain addition, promise epsilon 36 and" in statement
    assert "plain addition" not in render_tuning(searched(trials(epsilon=math.inf)))

    public = render_tuning(searched(public="they are generated, of nobody"))
    assert "No private data were looked at: they are generated" in section(public, "statement")
    assert "ot accounted for" not in public

    counted = render_tuning(paid())
    statement = section(counted, "statement")
    assert "Epsilon <strong>7.124</strong> at delta 1e-05" in statement, "an upper bound is rounded up"
    assert "shape 1 and mean 10" in statement and "arXiv 2110.03620" in statement
    assert "ot accounted for" not in counted


def test_the_record_of_a_counted_search_holds_nothing_but_the_best_trial() -> None:
    assert paid().best is not None
    for change in (
        {"trials": trials(2)},
        {"importances": {"seed": 1.0}},
        {"seed": 0},
        {"best": trials()[0]},
        {"best": trials()[0].model_copy(update={"name": ""})},
    ):
        with pytest.raises(ValidationError, match="is not paid for"):
            paid(**change)
    for change in ({"accounting": "none"}, {"selection": None}):
        with pytest.raises(ValidationError, match="is counted, or it has no epsilon"):
            paid(**change)


def test_it_draws_trials_keys_and_importance_and_needs_nothing_from_outside() -> None:
    page = render_tuning(searched())
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert titles == [
        "auroc, trial by trial",
        "How much each key matters",
        "auroc by training.learning_rate",
        "auroc by training.local_steps",
        "auroc by task.model.hidden",
    ]
    assert page.count("<svg") == 4 and re.search(r"A = \[\d+(, 8)?\]; B = ", page)
    assert not re.findall(r"https?://", page) and "<script" not in page
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert page.count('href="trials/') == 12 and page.count('<tr class="best">') == 1


def test_failed_trials_stand_first_and_are_in_no_chart() -> None:
    failed = TuningTrial(name="0013", values=trials()[0].values, outcome="failed: no update <arrived>")
    page = render_tuning(searched((*trials(), failed)))
    assert page.index("1 of 13 trials failed") < page.index('id="result"')
    assert "no update &lt;arrived&gt;" in page and "<arrived>" not in page
    nothing = render_tuning(searched((failed,), metric="", importances={}))
    assert "No trial has a value" in nothing and "<svg" not in nothing


def test_text_of_an_experiment_is_text() -> None:
    wild = "<b>ünß & 'x' 漢 $a$</b>"
    rows = tuple(
        t.model_copy(update={"values": {wild: wild if i % 2 else 3}}) for i, t in enumerate(trials())
    )
    page = render_tuning(
        searched(rows, name=wild, metric=wild, space={wild: wild}, logarithmic=(), importances={})
    )
    assert "<b>ün" not in page and "&lt;b&gt;ün" in page


@pytest.mark.parametrize("count", [1, 2, 300])
def test_small_and_large_searches_have_a_page_too(count: int) -> None:
    assert ("100 more trials are in tuning.csv" in render_tuning(searched(trials(count)))) == (count == 300)
