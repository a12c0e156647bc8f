"""The table that ends `tacit simulate` in a terminal."""

from __future__ import annotations

import math

from rich.table import Table
from rich.text import Text

from tacit.metric_names import lower_is_better
from tacit.report import compare
from tacit.report.record import RunRecord
from tacit.report.wording import metric_text, upper


def summary_table(record: RunRecord) -> Table:
    """Federated beside its baselines, and what it cost in privacy, bytes and time."""
    metrics = compare.metric_names(record)
    verdict = "" if record.is_private else " - NOT PRIVATE"
    table = Table(title=Text(f"{record.name}: {record.outcome}{verdict}"), title_justify="left")
    table.add_column("model")
    for name in metrics:
        table.add_column(
            Text(name + (" (lower is better)" if lower_is_better(name) else "")), justify="right"
        )
    table.add_column("epsilon", justify="right")
    for row in compare.comparison(record):
        cells = [metric_text(row.metrics.get(name)) for name in metrics]
        table.add_row(row.title, *cells, _epsilon(record) if row.key == "federated" else "not private")
    table.caption = Text(_cost(record))
    table.caption_justify = "left"
    return table


def _epsilon(record: RunRecord) -> str:
    if not record.is_private:
        return "infinite"
    return "\n".join(
        f"{upper(e.epsilon)} (delta {upper(e.delta)}, {e.unit})"
        for e in record.privacy
        if math.isfinite(e.epsilon)
    )


def _cost(record: RunRecord) -> str:
    seconds = math.fsum(item.seconds for item in record.rounds)
    parts = [f"{len(record.labels)} sites, {len(record.rounds)} rounds in {seconds:.1f} s"]
    secure = record.secure_aggregation
    if secure.bytes_up_per_client is not None:
        parts.append(f"{secure.bytes_up_per_client / 1000:.1f} kB up per client and round")
    how = secure.protocol if secure.engine == "protocol" else secure.engine
    parts.append(f"secure aggregation {how}" if secure.enabled else "no secure aggregation")
    if record.is_simulation:
        parts.append("figures exact: not private, local only")
    return "; ".join(parts)
