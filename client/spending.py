"""`tacit client ledger`: what one site's data have paid, by run and in all."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from client.site import Site
from tacit.logs import visible


@dataclass(frozen=True)
class Spent:
    """Debits of one run, or of all together where `run` is empty.

    Attributes:
        run: Tacit's id of the run.
        unit: of privacy: "record", "client", or "none" for a run without privacy.
        num_debits: releases paid for.
        first, last: when, UTC, ISO 8601.
        epsilon: at `delta`; infinite without privacy.
        delta: of the guarantee.
    """

    run: str
    unit: str
    num_debits: int
    first: str
    last: str
    epsilon: float
    delta: float


def spending(folder: Path, delta: float) -> list[Spent]:
    """Every run in a site's ledger, and for each unit of privacy the sum over all runs.

    Args:
        folder: the site's.
        delta: of the figures; 0 = that of the site's policy, else that of each run and the smallest for the sum.

    Raises:
        StorageError: the ledger is damaged, or in use.
    """
    site = Site.open(folder)
    if not (folder / "ledger" / "ledger.jsonl").exists():
        return []
    with site.ledger() as ledger:
        entries = ledger.entries
        wanted = delta or site.policy.delta or 0.0
        found = []
        for run, unit in dict.fromkeys((entry.run, entry.unit) for entry in entries):
            own = [entry for entry in entries if (entry.run, entry.unit) == (run, unit)]
            at = wanted or max(entry.delta for entry in own)
            epsilon = ledger.spent_by_run(run, at, unit) if unit != "none" else math.inf
            found.append(Spent(run, unit, len(own), own[0].time, own[-1].time, epsilon, at))
        for unit in ("record", "client"):
            deltas = [spent.delta for spent in found if spent.unit == unit and spent.delta > 0]
            if deltas:
                at = wanted or min(deltas)
                all_of_it = ledger.spent(at, unit)
                first, last = entries[0].time, entries[-1].time
                found.append(Spent("", unit, len(entries) + ledger.num_torn, first, last, all_of_it, at))
    return found


def show(found: list[Spent], *, as_json: bool) -> None:
    """Prints it: as a table, or as one JSON document, in which an infinite epsilon is null."""
    if as_json:
        rows = [{**asdict(s), "epsilon": s.epsilon if math.isfinite(s.epsilon) else None} for s in found]
        print(json.dumps(rows, indent=2, allow_nan=False))
        return
    if not found:
        print("nothing has been released")
        return
    lines = [("run", "unit", "debits", "from", "to", "epsilon", "delta")]
    for s in found:
        figures = (str(s.num_debits), s.first[:10], s.last[:10], f"{s.epsilon:.3f}", f"{s.delta:.1e}")
        lines.append((visible(s.run) or "all", s.unit, *figures))  # the coordinator has chosen the id
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:  # no table of Rich's: it would cut the ids that somebody wants to copy
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(
        "all: an upper bound by Renyi DP; a run's own figure is by a tighter accountant (docs/accounting.md)"
    )
