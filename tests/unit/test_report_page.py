"""The HTML page of a run: marks, markup, addresses, speed, and what it needs to be made."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tacit.errors import MissingExtra
from tacit.report.html import MARKS, render_html, write_html
from tacit.report.record import Baselines, Final, SecureSum, SiteResult, SiteSlice
from tacit.report.statement import privacy_statement
from tacit.report.summary import summary_table
from tests.unit.report_records import deployed, entry, many_sites, run_record, seeded, sentinel_record

# ---- the page


class Page(HTMLParser):
    """Every text of a page with the marks and tags it stands in."""

    VOID = ("meta", "br", "link", "img", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[dict[str, Any]] = []
        self.texts: list[tuple[str, list[dict[str, Any]]]] = []
        self.elements: list[dict[str, Any]] = []
        self.feed(page)
        assert self.stack == [], f"not closed: {[item['tag'] for item in self.stack]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.elements.append({**element, "within": list(self.stack)})
        if tag not in self.VOID:
            self.stack.append(element)
            self.elements[-1] = element
            element["within"] = self.stack[:-1]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append({"tag": tag, "text": "", "within": list(self.stack), **dict(attrs)})

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self.stack:
            element["text"] += data
        self.texts.append((data, list(self.stack)))


def nearest_mark(stack: list[dict[str, Any]]) -> str | None:
    marks = [element["data-mark"] for element in stack if "data-mark" in element]
    return marks[-1] if marks else None


EXACT = (
    *("0.611", "0.644", "0.655", "0.666", "0.677", "0.688", "0.699", "0.700"),  # metrics
    *("0.044", "0.661"),  # a gain and a mean, derived from them
    *("7102", "7202", "7301", "7401", "7501", "7601", "7701", "71.9"),  # rows, labels, clipped updates
)


def test_I17_every_exact_figure_of_the_page_is_marked_simulation_only() -> None:
    page = Page(render_html(sentinel_record()))
    for figure in EXACT:
        found = [nearest_mark(stack) for text, stack in page.texts if figure in text]
        assert found, f"{figure} is not on the page"
        assert set(found) == {"simulation"}, figure


@pytest.mark.parametrize(
    "make", [run_record, deployed, sentinel_record, lambda: run_record(private=False), seeded]
)
def test_I17_every_figure_stands_in_a_mark_that_the_reader_sees(make: Any) -> None:
    record = make()
    page = Page(render_html(record))
    for text, stack in page.texts:
        if any(letter.isdigit() for letter in text) and stack[1]["tag"] == "body":
            assert nearest_mark(stack) in MARKS, text
    for element in page.elements:
        kind = element.get("data-mark")
        if kind and kind != "public":
            assert MARKS[kind] in element["text"], element["text"][:200]
    charts = {element["id"].partition("-")[0]: nearest_mark(element["within"]) for element in page.elements
              if element["tag"] == "g" and element.get("id", "").endswith("-0")}  # fmt: skip
    server = "private" if record.is_private else "not-private"
    expected = {"learning0": "simulation", "server0": server, "epsilon": "public", "timing": "public"}
    assert charts and all(charts[name] == expected[re.sub(r"\d", "0", name)] for name in charts)


def test_metrics_that_the_server_learned_are_called_private_only_in_a_private_run() -> None:
    for record, mark in ((deployed(), "private"), (deployed(private=False), "not-private")):
        page = Page(render_html(record))
        found = {nearest_mark(stack) for text, stack in page.texts if "0.812" in text}
        assert found == {mark}


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def test_text_of_an_experiment_is_text_never_markup(tmp_path: Path) -> None:
    labels = (HOSTILE, '" onmouseover="x', "${{7*7}}", "病院 \U0001f3e5 $x$")
    base = run_record(labels=labels)
    record = run_record(
        labels=labels,
        warnings=(HOSTILE,),
        run_id=HOSTILE,
        outcome=f"failed: {HOSTILE}",
        versions={HOSTILE: HOSTILE},
        timings={HOSTILE: 1.0},
        ledger=({HOSTILE: HOSTILE},),
        experiment={**base.experiment, "data": {"source": HOSTILE}},
        final=Final(metrics={HOSTILE: 0.5}, sites=base.final.sites),
        partition=(*base.partition, SiteSlice(label="z", rows=1, train=1, test=0, labels={HOSTILE: 1})),
        privacy=(entry(relation=HOSTILE, accountant=HOSTILE, trusted=HOSTILE, not_covered=(HOSTILE,)),),
    )
    html = render_html(record)
    page = Page(html)
    tags = {element["tag"] for element in page.elements}
    assert tags.isdisjoint({"script", "img", "iframe", "object", "link", "a:href"})
    assert not [key for element in page.elements for key in element if key.startswith("on")]
    assert html.count("&lt;script&gt;") > 10 and "{{7*7}}" in html and "病院" in html
    statement = privacy_statement(record)
    assert "<script" not in statement.replace(r"\<script", "")
    assert "\n# " not in statement[1:], "a text of the run made a heading of its own"


@pytest.mark.parametrize("make", [run_record, many_sites, deployed, lambda: run_record(private=False)])
def test_page_names_no_address_outside_itself(make: Any) -> None:
    html = render_html(make())
    assert "://" not in html and "@import" not in html and "xmlns" not in html
    page = Page(html)
    for element in page.elements:
        assert element["tag"] not in ("script", "link", "iframe", "object", "base", "form")
        for key in ("src", "href", "action", "srcset"):
            assert str(element.get(key, "#")).startswith("#"), element
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    ids = [element["id"] for element in page.elements if "id" in element]
    assert len(ids) == len(set(ids))
    targets = {str(element["href"])[1:] for element in page.elements if "href" in element}
    assert targets <= set(ids)


def test_page_is_made_in_under_three_seconds_and_always_the_same(tmp_path: Path) -> None:
    record = many_sites()
    render_html(record)  # imports, and matplotlib's font list, are paid once
    start = time.process_time()
    write_html(record, tmp_path / "report.html")
    assert time.process_time() - start < 3
    first = (tmp_path / "report.html").read_text(encoding="utf-8")
    with ThreadPoolExecutor(3) as threads:
        assert set(threads.map(render_html, [record] * 3)) == {first}


@pytest.mark.parametrize("make", [run_record, deployed, lambda: run_record(private=False), seeded])
def test_page_of_a_run_that_is_not_private_says_so_before_any_result(make: Any) -> None:
    record = make()
    texts = [text.strip() for text, _ in Page(render_html(record)).texts]
    assert ("NOT PRIVATE" in texts) == (not record.is_private)
    heading = len(texts) - 1 - texts[::-1].index("Result")
    assert record.is_private or texts.index("NOT PRIVATE") < heading


def test_page_says_once_that_a_run_with_seeded_noise_is_not_private() -> None:
    warnings = ("NOT PRIVATE: the noise follows from the seed", "one site left")
    page = Page(render_html(seeded(warnings=warnings)))
    banners = [element["text"] for element in page.elements if "banner" in str(element.get("class"))]
    assert sum("NOT PRIVATE" in text for text in banners) == 1
    assert "one site left" in banners
    assert sum("is NOT PRIVATE" in text or text.startswith("Warning: NOT") for text, _ in page.texts) == 1


EDGE_CASES = {
    "no rounds": {"rounds": (), "outcome": "failed: spent", "final": Final(), "baselines": Baselines()},
    "one round": {"rounds": run_record().rounds[:1]},
    "nothing optional": {
        "timings": {}, "versions": {}, "ledger": (), "partition": (), "baselines": Baselines()},
    "no test rows": {"final": Final(metrics={"auroc": None, "accuracy": None})},
    "diverged": {"final": Final(metrics={"loss": math.inf}, sites=(
        SiteResult(label="a", rows=1, test_rows=1, metrics={"loss": math.inf}),))},
    "no secure sum": {"secure_aggregation": SecureSum(enabled=False)},
    "two hundred classes": {"partition": (
        SiteSlice(label="a", rows=200, train=200, test=0, labels={f"c{i}": 1 for i in range(200)}),)},
    "thousand rounds": {"rounds": tuple(
        run_record().rounds[0].model_copy(update={"round": r}) for r in range(1, 1001))},
}  # fmt: skip


@pytest.mark.parametrize("case", EDGE_CASES)
def test_any_run_has_a_page_a_statement_and_a_summary(case: str) -> None:
    record = run_record(**EDGE_CASES[case])
    html = render_html(record)
    Page(html)
    assert "nan" not in re.sub(r"<[^>]*>", " ", html).lower().split()
    assert privacy_statement(record) and summary_table(record).row_count >= 1


def in_a_process_of_its_own(script: str, tmp_path: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_report_touches_no_pyplot_and_needs_no_home(tmp_path: Path) -> None:
    script = (
        "from tests.unit.report_records import run_record; from tacit.report.html import render_html\n"
        "import sys, os, tempfile\n"
        "render_html(run_record()); assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert os.environ['MPLCONFIGDIR'].startswith(tempfile.gettempdir())"
    )
    assert in_a_process_of_its_own(script, tmp_path, HOME=str(tmp_path / "absent")) == ""
    assert list(tmp_path.iterdir()) == [], "something was left behind"


def test_reading_a_record_loads_neither_torch_nor_an_optional_library(tmp_path: Path) -> None:
    script = (
        "import sys, tacit.report.html, tacit.report.summary, tacit.report.statement, tacit.report.storage\n"
        "print(sorted({'torch', 'matplotlib', 'jinja2', 'pandas', 'flwr'} & set(sys.modules)))"
    )
    assert in_a_process_of_its_own(script, tmp_path).strip() == "[]"


@pytest.mark.parametrize("library", ["jinja2", "matplotlib.backends.backend_agg"])
def test_missing_library_is_answered_with_the_extra_that_brings_it(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=r"tacit\[simulation\]"):
        render_html(run_record())
