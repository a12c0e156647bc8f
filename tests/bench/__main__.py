"""`make bench`: ratios against references measured in the same run; a table, and build/bench.json.

`python -m tests.bench [--only GROUP]`; a group is a module of this folder with `run() -> list of rows`, a row being
`{name, ratio, bar, better: "lower" | "higher", ok}`, `ratio` None where nothing was measured. A slow group runs only
when it is named. The file holds what this call has measured, and nothing of an earlier one. Exit code 1 when a bar is
missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

GROUPS = ("masks", "secagg", "steps", "engines", "convolutions", "edge", "utility")
SLOW = ("secagg_slow", "scale")  # run by name only
RESULT = Path("build") / "bench.json"


def main() -> int:
    """Runs the groups that are asked for and writes what they measured."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", choices=(*GROUPS, *SLOW), help="run one group")
    only = parser.parse_args().only
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.unlink(missing_ok=True)
    rows = []
    for group in (only,) if only else GROUPS:
        print(f"{group} ...", flush=True)
        rows += importlib.import_module(f"tests.bench.{group}").run()
        measured = [row for row in rows if row["ratio"] is not None]
        RESULT.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    Console().print(table(rows))
    print(f"written to {RESULT}")
    return 0 if all(row["ok"] for row in rows) else 1


def table(rows: list[dict]) -> Table:
    """One line per row."""
    shown = Table("what", "measured", "bar", "")
    for row in rows:
        sign = "<=" if row["better"] == "lower" else ">="
        figure = "-" if row["ratio"] is None else f"{row['ratio']:.3g}"
        bar = "-" if row["bar"] is None else f"{sign} {row['bar']:g}"
        verdict = "skipped" if row["ratio"] is None else "ok" if row["ok"] else "MISSED"
        shown.add_row(row["name"], figure, bar, verdict)
    return shown


if __name__ == "__main__":
    sys.exit(main())
