"""Chooses the hyper-parameters of the built-in scenarios: `python -m tests.bench.choose SCENARIO`.

A walk over one factor after the other: each row of the table is the choice so far with one factor changed, and
the best row becomes the choice. Every setting meets the same problems, the same Poisson draws and the same noise
(from a seed: nothing is released here), so that a difference between rows is not one of luck.

No setting is judged by rows that its scenario reports on:
    heart_disease   invented hospitals; the hospitals' rows are never read here.
    breast_cancer   a quarter of each clinic's training rows, held back from training.
    credit_default  the same of each bank, divided by other seeds than those that are reported. Tuning on rows is
                    outside a privacy budget, and the statement of a run says so.
    loss_given_default  the same, of other generated loans.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from client.training import Job, LocalTrainer
from simulations import source_schemas
from simulations.evaluate import SiteRecords, union
from simulations.run import prepare
from simulations.stacked import StackedTrainer
from tacit import config
from tacit.config import Experiment, Federation, Site
from tacit.data.schema import NumericColumn, Schema
from tacit.privacy.noise import SeededKeys, Stream
from tacit.privacy.plan import PrivacyPlan
from tacit.tasks import Records, Summarises, load_task
from tacit.tasks.weights import Arrays, initial_arrays, load_arrays

SCENARIOS = Path(__file__).parents[2] / "simulations" / "scenarios"
HELD_BACK = 0.25  # of the training rows, where real rows choose

# Published with the UCI Heart Disease data: rows to train on after the split, and share of the sick.
HOSPITALS = ((199, 0.46), (172, 0.36), (30, 0.93), (85, 0.75))
EFFECT = (
    1 / 3
)  # typical distance of the sick and of the healthy from the middle, in standard deviations or logits
TEST_ROWS = 1000  # of each invented hospital: enough that its accuracy is known to about 0.01

Setting = tuple[str, ...]  # overrides, as `--set` takes them


class Problem(NamedTuple):
    """What a setting is tried on: seed of weights, draws and noise; schema; rows to train on and to judge by."""

    seed: int
    data: config.Data
    sites: tuple[SiteRecords, ...]


PRIVATE: dict[str, Setting] = {"private": ()}
BOTH: dict[str, Setting] = {**PRIVATE, "without privacy": ("privacy=none",)}


@dataclass(frozen=True)
class Search:
    """How one scenario's settings are chosen.

    Attributes:
        metrics: what is judged by, the higher the better.
        per_site: the mean over sites of a metric, instead of the metric over all rows together.
        modes: overrides under which a setting must do well; its score is the mean over metrics and modes.
        start: where the walk begins.
        factors: what it tries, in this order.
    """

    metrics: tuple[str, ...]
    per_site: bool
    modes: Mapping[str, Setting]
    start: Setting
    factors: tuple[tuple[Setting, ...], ...]


def problems(scenario: str) -> Iterator[Problem]:
    """What every setting is tried on."""
    if scenario == "heart_disease":
        yield from map(invented_hospitals, range(16))
    else:
        last = 104 if scenario == "breast_cancer" else 102
        yield from (held_back(scenario, seed) for seed in range(101, last + 1))


def invented_hospitals(seed: int) -> Problem:
    """Four hospitals like those of UCI Heart Disease in what was public before any row was read.

    Features follow the declared schema: numbers about normal at their stated center and scale, flags, one-hot
    categories. The sick differ from the healthy in every feature, by a random amount, so that the truth is a
    logistic rule and its noise leaves some 80 % of the cases to be guessed right. That amount differs a little
    between hospitals, and so do their populations and the share of the sick.
    """
    rng = np.random.default_rng(seed)
    schema = source_schemas.heart_disease()
    effects = rng.normal(0, EFFECT, len(schema.feature_names))
    sites = []
    for number, (rows, sick) in enumerate(HOSPITALS):
        own = effects + rng.normal(0, EFFECT / 3, effects.size)
        y = rng.random(rows + TEST_ROWS) < sick
        x = _patients(schema, np.where(y, 1, -1)[:, None] * own, rng)
        features, targets = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64))
        train, test = (Records(features[part], targets[part]) for part in (slice(rows), slice(rows, None)))
        sites.append(SiteRecords(f"hospital-{number}", train, test))
    data = load("heart_disease", ()).data.model_copy(update={"columns": schema})
    return Problem(seed, data, tuple(sites))


def _patients(schema: Schema, effects: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Features of one hospital's patients, shape (rows, features), as `effects` of that shape move them."""
    blocks, position = [], 0
    for column in schema.columns.values():
        width = 1 if isinstance(column, NumericColumn) else len(column.categories)
        moved = effects[:, position : position + width] + rng.normal(0, 0.5, width)
        position += width
        if not isinstance(column, NumericColumn):
            gumbel = rng.gumbel(size=moved.shape)  # the largest of logits plus Gumbel noise: a softmax draw
            blocks.append(np.eye(width)[(moved + gumbel).argmax(axis=1)])
        elif column.range == (0.0, 1.0):
            blocks.append((moved + rng.logistic(size=moved.shape) > 0).astype(np.float64))
        else:
            blocks.append((moved + rng.normal(size=moved.shape)).clip(-column.clip, column.clip))
    return np.column_stack(blocks)


def held_back(scenario: str, seed: int) -> Problem:
    """The scenario's own sites; a quarter of each one's training rows to judge by. Its test rows are not read."""
    experiment = load(scenario, (f"seed={seed}",))
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(experiment, Path(folder), durable=False)
        task = load_task(prepared.experiment)
        sites = (
            _cut(site.label, task.read(prepared.data_path(i), "train"), seed)
            for i, site in enumerate(prepared.sites)
        )
        return Problem(seed, prepared.experiment.data, tuple(sites))


def _cut(label: str, records: Records, seed: int) -> SiteRecords:
    draws = Stream(SeededKeys(seed).key("held back", label)).uniform(records.num_rows)
    back = draws < min(HELD_BACK, float(draws.max()))  # never all of them
    kept, held = (torch.from_numpy(np.flatnonzero(rows)) for rows in (~back, back))
    return SiteRecords(
        label,
        Records(records.features[kept], records.targets[kept]),
        Records(records.features[held], records.targets[held]),
    )


def load(scenario: str, setting: Setting) -> Experiment:
    """The scenario's file under a setting."""
    folder = os.environ.get("TACIT_TEST_DATA")
    data = (f"data.dir={folder}/{scenario.replace('_', '-')}",) if folder else ()
    ideal = "secure_aggregation.engine=ideal"
    return config.load(SCENARIOS / f"{scenario}.toml", (*data, ideal, *setting))


def resolved(scenario: str, setting: Setting, problem: Problem) -> Experiment:
    """The scenario's experiment on one problem."""
    experiment = load(scenario, (*setting, f"seed={problem.seed}", "insecure_seeded_noise=true"))
    declared = tuple(Site(label=site.label, rows=site.train.num_rows) for site in problem.sites)
    return experiment.with_tables(data=problem.data, federation=Federation(sites=declared))


def federated(experiment: Experiment, sites: Sequence[SiteRecords]) -> Arrays:
    """Federated averaging with the sites' own training, without messages or rounding."""
    task, keys = load_task(experiment), SeededKeys(experiment.seed)
    trainer = StackedTrainer.of(LocalTrainer(task, PrivacyPlan.of(experiment), experiment))
    rows = [site.rows for site in experiment.federation.sites]
    jobs = [Job(site.label, site.train, n) for site, n in zip(sites, rows, strict=True)]
    weights = rows if experiment.strategy.weights == "declared" else [1] * len(rows)
    arrays: Arrays = initial_arrays(task, private=True, seed=experiment.seed)
    for number in range(1, experiment.training.rounds + 1):
        changes = np.concatenate([part.train(arrays, number, keys) for part in trainer.stacks(jobs)])
        mean = trainer.unflatten(np.average(changes, axis=0, weights=weights).astype("f4"))
        arrays = {name: arrays[name] + mean[name] for name in arrays}
    return arrays


def judged(search: Search, experiment: Experiment, sites: Sequence[SiteRecords]) -> list[float]:
    """Each metric of the model that the experiment trains on these sites."""
    task = load_task(experiment)
    assert isinstance(task, Summarises)
    model = task.model()
    load_arrays(model, federated(experiment, sites))
    tests = [site.test for site in sites]
    with torch.no_grad():
        summaries = [
            task.summary(model(part.features), part.targets)
            for part in (tests if search.per_site else [union(tests)])
        ]
    return [fmean(summary[metric] for summary in summaries) for metric in search.metrics]


class Walk:
    """One search: remembers what has been tried."""

    def __init__(self, scenario: str, search: Search) -> None:
        self.scenario, self.search = scenario, search
        self.problems = list(problems(scenario))
        self.tried: dict[Setting, list[float]] = {}

    def run(self) -> Setting:
        """Walks, prints a line of a Markdown table per setting, returns the choice."""
        heads = [f"{metric}, {mode}" for mode in self.search.modes for metric in self.search.metrics]
        print(_line(("one factor changed", *heads, "mean")), _line("---" for _ in (0, *heads, 0)), sep="\n")
        choice = _merged((), self.search.start)
        print(_line((f"start: {_text(choice)}", *self.shown(choice))), flush=True)
        for factor in self.search.factors:
            settings = [choice, *(_merged(choice, change) for change in factor)]
            best = max(settings, key=lambda setting: fmean(self.figures(setting)))
            for setting, change in zip(settings[1:], factor, strict=True):
                bold = "**" if setting == best != choice else ""
                print(_line((f"{bold}{_text(change)}{bold}", *self.shown(setting))), flush=True)
            choice = best
        print(_line((f"choice: {_text(choice)}", *self.shown(choice))))
        return choice

    def shown(self, setting: Setting) -> list[str]:
        """`figures` and their mean, as text."""
        figures = self.figures(setting)
        return [f"{figure:.4f}" for figure in (*figures, fmean(figures))]

    def figures(self, setting: Setting) -> list[float]:
        """The mean over all problems of each metric, in each mode."""
        if setting not in self.tried:
            self.tried[setting] = [
                figure for mode in self.search.modes.values() for figure in self._figures((*setting, *mode))
            ]
        return self.tried[setting]

    def _figures(self, setting: Setting) -> list[float]:
        runs = (judged(self.search, resolved(self.scenario, setting, p), p.sites) for p in self.problems)
        return [fmean(column) for column in zip(*runs, strict=True)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _merged(setting: Setting, change: Setting) -> Setting:
    """A setting with some keys replaced."""
    values = dict(part.split("=", 1) for part in (*setting, *change))
    return tuple(f"{key}={value}" for key, value in sorted(values.items()))


def _text(setting: Setting) -> str:
    """Without the tables' names, which the keys do not need to be understood."""
    return ", ".join(map(_short, setting))


def _short(part: str) -> str:
    key, _, value = part.partition("=")
    return f"{key.rsplit('.', 1)[-1]} {value}"


def _each(key: str, *values: object) -> tuple[Setting, ...]:
    """One setting per value of a key."""
    return tuple((f"{key}={value}",) for value in values)


def _rates_and_clips(rates: Sequence[float], clips: Sequence[float]) -> tuple[Setting, ...]:
    """Together, because a clip norm scales a private step as the rate does."""
    return tuple(
        (f"training.learning_rate={rate}", f"privacy.record.max_grad_norm={clip}")
        for rate in rates
        for clip in clips
    )


FULL_BATCHES: Setting = (
    "task.model.name=logistic",
    "task.model.hidden=none",
    "strategy.weights=declared",
    "training.rounds=20",
    "training.local_steps=1",
    "training.sampling_rate=1.0",
    "training.schedule=cosine",
    "training.learning_rate=1.0",
    "training.momentum=0.0",
    "training.weight_decay=0.0",
    "privacy.record.max_grad_norm=1.0",
)
SMALL_FACTORS = (
    _rates_and_clips((0.3, 1.0, 3.0), (0.3, 1.0, 3.0)),
    _each("training.weight_decay", 0.01, 0.03, 0.1),
    _each("training.rounds", 5, 10, 40),
    _each("training.schedule", "constant"),
    (
        ("training.local_steps=4",),
        ("training.local_steps=4", "training.momentum=0.9"),
        ("training.local_steps=4", "strategy.name=fedprox", "strategy.proximal_mu=0.3"),
    ),
    _each("training.sampling_rate", 0.5, 0.2),
    (("task.model.name=mlp", "task.model.hidden=[8]"), ("task.model.name=mlp", "task.model.hidden=[32]")),
    _each("strategy.weights", "equal"),
    _rates_and_clips((1.0, 2.0, 4.0), (0.5, 1.0, 2.0)),
)
# One step a round: the noise of a small bank's own model would lead it astray in a second one.
ONE_STEP: Setting = (
    "task.model.name=mlp",
    "task.model.hidden=[32]",
    "strategy.weights=declared",
    "training.rounds=100",
    "training.local_steps=1",
    "training.sampling_rate=0.3",
    "training.schedule=cosine",
    "training.learning_rate=8.0",
    "training.momentum=0.0",
    "training.weight_decay=0.0",
    "privacy.record.max_grad_norm=1.0",
)
CREDIT_FACTORS = (
    _rates_and_clips((4.0, 8.0, 16.0), (0.5, 1.0)),
    (
        ("task.model.name=logistic", "task.model.hidden=none"),
        ("task.model.hidden=[16]",),
        ("task.model.hidden=[64]",),
    ),
    _each("training.rounds", 50, 200),
    _each("training.sampling_rate", 0.1, 1.0),
    (("training.local_steps=5", "training.rounds=20"),),
    _each("training.momentum", 0.5),
    _each("training.weight_decay", 0.001, 0.003),
)
FEW_LOANS: Setting = _merged(
    ONE_STEP,
    (
        "task.model.hidden=[16]",
        "training.sampling_rate=1.0",
        "training.rounds=50",
        "training.learning_rate=1.0",
    ),
)
LOAN_FACTORS = (
    _rates_and_clips((0.3, 1.0, 3.0), (0.3, 1.0, 3.0)),
    (
        ("task.model.name=logistic", "task.model.hidden=none"),
        ("task.model.hidden=[4]",),
        ("task.model.hidden=[8]",),
    ),
    _each("task.model.activation", "tanh"),
    _each("training.rounds", 20, 100),
    _each("training.sampling_rate", 0.3),
    _each("training.momentum", 0.5),
    _each("training.weight_decay", 0.01, 0.03),
    _rates_and_clips((0.5, 1.0, 2.0), (0.5, 1.0, 2.0)),
)
SEARCHES = {
    "heart_disease": Search(("accuracy",), True, BOTH, FULL_BATCHES, SMALL_FACTORS),
    "breast_cancer": Search(("auroc", "accuracy"), False, BOTH, FULL_BATCHES, SMALL_FACTORS),
    "credit_default": Search(("auroc",), False, PRIVATE, ONE_STEP, CREDIT_FACTORS),
    "loss_given_default": Search(("r2",), False, PRIVATE, FEW_LOANS, LOAN_FACTORS),
}


def main() -> None:
    """Prints the table of one scenario's search, and the choice as overrides."""
    parser = argparse.ArgumentParser(description="Chooses the hyper-parameters of a built-in scenario.")
    parser.add_argument("scenario", choices=sorted(SEARCHES))
    scenario = parser.parse_args().scenario
    torch.set_num_threads(1)
    choice = Walk(scenario, SEARCHES[scenario]).run()
    print("choice:", *(f"--set {part}" for part in choice))


if __name__ == "__main__":
    main()
