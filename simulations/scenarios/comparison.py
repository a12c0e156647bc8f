"""Is federation worth it here? One scenario under several promises, with and without failures: one table.

DIR/not-private/  DIR/epsilon-8/ ...   the runs, each with its report
DIR/comparison.json                    the table
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.run import simulate
from simulations.scenarios import catalogue
from simulations.scenarios.story import Story
from tacit import config
from tacit.report.compare import mean_over_sites
from tacit.report.storage import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from tacit.report.record import RunRecord, SiteResult

EPSILONS = (8.0, 3.0, 1.0)
FAULTS = catalogue.FOLDER / "faults" / "one_in_five_drops.toml"


@dataclass(frozen=True)
class Line:
    """One model of the comparison.

    Attributes:
        model: which.
        epsilon: of the whole run; None where nothing is promised.
        overall: its figure on the held-out rows of all sites together; None for each site's own model.
        mean: the plain mean over sites of its figure at each.
        gaining: at how many sites it is better than what the site would train alone; None for the baselines.
    """

    model: str
    epsilon: float | None
    overall: float | None
    mean: float | None
    gaining: int | None = None


def compare(
    story: Story,
    out: Path,
    settings: Sequence[str],
    *,
    epsilons: Sequence[float] = EPSILONS,
    say: Callable[[str], None] = lambda text: None,
) -> list[Line]:
    """Runs a scenario without privacy, at each epsilon, and at the last of them with a fifth of the sites failing.

    Args:
        story: which.
        out: the folder for all runs.
        settings: overrides for each.
        epsilons: of one record.
        say: told which run begins.
    """

    def run(name: str, *more: str) -> RunRecord:
        say(name)
        experiment = config.load(catalogue.experiment_file(story.name), [*settings, *more])
        return simulate(experiment, out / name)

    plain = run("not-private", "privacy=none")
    lines = _baselines(plain, story.metric)
    alone = {} if plain.baselines.local is None else _by_site(plain.baselines.local.sites, story.metric)
    lines.append(_line("federated, not private", None, plain, story.metric, alone))
    # The figure that is compared with was trained already, and depends on no promise.
    bare = ("simulation.baselines=false",)
    for epsilon in epsilons:
        promise = f"privacy.record.epsilon={epsilon}"
        record = run(f"epsilon-{epsilon:g}", promise, *bare)
        lines.append(_line("federated", epsilon, record, story.metric, alone))
    if epsilons:
        failing = run("failing", promise, *bare, f"simulation.faults={json.dumps(str(FAULTS))}")
        lines.append(_line("federated, a fifth of the sites failing", epsilon, failing, story.metric, alone))
    rows = {"scenario": story.name, "metric": story.metric, "lines": [asdict(line) for line in lines]}
    write_text(json.dumps(rows, indent=2) + "\n", out / "comparison.json")
    return lines


def comparison_table(story: Story, lines: Sequence[Line]) -> Table:
    """The same for the terminal."""
    from rich.table import Table

    title = f"{story.name}: {story.metric} on held-out records"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("model", "epsilon", "all sites", "mean of sites", "sites that gain"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for line in lines:
        table.add_row(
            line.model,
            "-" if line.epsilon is None else f"{line.epsilon:g}",
            *("-" if figure is None else f"{figure:.3f}" for figure in (line.overall, line.mean)),
            "" if line.gaining is None else str(line.gaining),
        )
    return table


def _baselines(record: RunRecord, metric: str) -> list[Line]:
    found, lines = record.baselines, list[Line]()
    for name, baseline in (("best achievable", found.best), ("pooled, not private", found.pooled)):
        if baseline is not None:
            lines.append(
                Line(name, None, baseline.metrics.get(metric), mean_over_sites(baseline.sites).get(metric))
            )
    if found.local is not None:
        lines.append(
            Line("each site alone, not private", None, None, mean_over_sites(found.local.sites).get(metric))
        )
    return lines


def _line(model: str, epsilon: float | None, record: RunRecord, metric: str, alone: dict[str, float]) -> Line:
    final = record.final
    here = _by_site(final.sites, metric)
    gaining = sum(here[label] > alone[label] for label in here if label in alone)
    return Line(model, epsilon, final.metrics.get(metric), mean_over_sites(final.sites).get(metric), gaining)


def _by_site(sites: Sequence[SiteResult], metric: str) -> dict[str, float]:
    """The figure at each site that has one."""
    return {site.label: value for site in sites if (value := site.metrics.get(metric)) is not None}
