"""What `make bench` writes down and what its exit code says."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bench import __main__ as bench

GOOD = {"name": "good", "ratio": 4.0, "bar": 3.0, "better": "higher", "ok": True}
MISSED = {"name": "slow", "ratio": 9.0, "bar": 2.0, "better": "lower", "ok": False}
SKIPPED = {"name": "not here", "ratio": None, "bar": 0.8, "better": "higher", "ok": True}


@pytest.mark.parametrize(
    ("rows", "code", "measured"),
    [
        ([GOOD], 0, [GOOD]),
        ([GOOD, MISSED], 1, [GOOD, MISSED]),
        ([GOOD, SKIPPED], 0, [GOOD]),
    ],
)
def test_a_missed_bar_is_the_exit_code_and_the_file_holds_what_was_measured(
    rows: list[dict[str, Any]],
    code: int,
    measured: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tests.bench.masks", SimpleNamespace(run=lambda: rows))
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "masks"])
    assert bench.main() == code
    assert json.loads((tmp_path / "build" / "bench.json").read_text()) == measured
    shown = capsys.readouterr().out
    assert ("MISSED" in shown, "skipped" in shown) == (MISSED in rows, SKIPPED in rows)


def test_a_group_that_fails_leaves_no_figures_of_an_earlier_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "bench.json").write_text("[]")
    monkeypatch.setitem(sys.modules, "tests.bench.masks", SimpleNamespace(run=lambda: [GOOD]))
    monkeypatch.setitem(sys.modules, "tests.bench.steps", SimpleNamespace(run=lambda: 1 / 0))
    monkeypatch.setattr(bench, "GROUPS", ("masks", "steps"))
    monkeypatch.setattr(sys, "argv", ["bench"])
    with pytest.raises(ZeroDivisionError):
        bench.main()
    assert json.loads((tmp_path / "build" / "bench.json").read_text()) == [GOOD]
