"""The rounds of a run, driving any Flower strategy through its public methods.

Flower's own `Strategy.start` can neither resume nor stop early, and samples its cohorts from a global generator.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from strategies.grids import CohortGrid, RoundFacts, spelled
from strategies.overlap import AtOnce, Replies
from strategies.state import check_resumable, restore_state, save_state
from tacit.config import Experiment
from tacit.encoding import NUM_RECORDS
from tacit.errors import ConfigError, RunFailed, StorageError
from tacit.metric_names import lower_is_better
from tacit.population import Nodes
from tacit.privacy.adaptive import clip_text, next_clip
from tacit.privacy.plan import PrivacyPlan
from tacit.tasks.summed import riders

Arrays = dict[str, NDArray[np.float32]]


class RoundGrid(Protocol):
    """A grid that tells what happened in its last exchange."""

    facts: RoundFacts

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        """See Flower's `Grid`."""
        ...


@dataclass
class Progress:
    """Where a run stands: saved and restored as a whole, so that a resumed run goes on as if it had not stopped.

    Attributes:
        round: the last complete round; 0 = none.
        arrays: the global model after that round.
        strategy: the strategy's own arrays.
        best_round: round whose model has the best value of the monitored metric so far; -1 = none.
        best_value: that value.
        stale: rounds since then.
        clip: the clip norm in force for the next round; 0 where it does not adapt.
        cohorts: of the rounds that are under way when the next one begins, where there are several at a time. Whoever
            was ready then may not be when a run goes on, and has perhaps sent what is sent once.
    """

    round: int
    arrays: Arrays
    strategy: dict[str, NDArray[Any]] = field(default_factory=dict)
    best_round: int = -1
    best_value: float = 0.0
    stale: int = 0
    clip: float = 0.0
    cohorts: Mapping[int, list[str]] = field(default_factory=dict)

    def watched(self, value: float | None, *, lower_is_better: bool) -> Progress:
        """The same, now that the monitored metric of this model is known; None where it is not."""
        if value is None:
            return self
        is_better = value < self.best_value if lower_is_better else value > self.best_value
        if self.best_round < 0 or is_better:
            return replace(self, best_round=self.round, best_value=value, stale=0)
        return replace(self, stale=self.stale + 1)


class Store(Protocol):
    """Where the server keeps a run. What `save` has returned from survives `kill -9`."""

    def load(self) -> Progress | None:
        """The last complete round, or None."""
        ...

    def save(self, progress: Progress, record: Mapping[str, Any] | None) -> None:
        """Stores a round's model, state and record together."""
        ...


class Rounds:
    """draw -> configure -> collect -> aggregate -> release, until the last round or an early stop.

    Args:
        experiment: rounds, cohort size, early stopping.
        plan: what a round costs.
        strategy: any Flower strategy.
        grid: carries the messages; with a secure sum inside or without.
        nodes: node id of each member, by label, in roster order.
        store: checkpoints.
        run: Tacit's own id of the run.
        scaling: constants of a federated scaling, as text; empty without.
    """

    def __init__(
        self,
        experiment: Experiment,
        plan: PrivacyPlan,
        strategy: Strategy,
        grid: Grid,
        nodes: Mapping[str, int],
        store: Store,
        run: str,
        scaling: str = "",
    ) -> None:
        self.experiment, self.plan, self.strategy = experiment, plan, strategy
        self.grid, self.nodes, self.store, self.run_id, self.scaling = grid, nodes, store, run, scaling
        self._begun: dict[
            int, tuple[list[str], Replies]
        ] = {}  # rounds under way: cohort and what it will reply

    def run(self, initial: Arrays) -> Progress:
        """Runs all rounds that are still to do; returns the state after the last one.

        Raises:
            ConfigError: the strategy keeps state that cannot be saved, or does not ask the whole cohort.
            RunFailed: a round had nothing to aggregate.
            StorageError: the stored model is another one than this task's.
        """
        progress = self.resumed(initial)
        while progress.round < self.experiment.training.rounds and not self.stops(progress):
            progress = self.next_round(progress)
        return progress

    def next_round(self, before: Progress) -> Progress:
        """One round: draw -> configure -> collect -> aggregate -> release; those after it may have begun by then."""
        started, number = time.perf_counter(), before.round + 1
        last = min(before.round + self.experiment.strategy.at_once, self.experiment.training.rounds)
        for begins in range(max([before.round, *self._begun]) + 1, last + 1):
            cohort = before.cohorts.get(begins) or self.draw(begins)
            messages = self.configure(begins, cohort, before.arrays, before.clip)
            self._begun[begins] = cohort, self.collecting(begins, messages)
        cohort, replies = self._begun.pop(number)
        arrays, sums = self.aggregate(number, replies())
        return self.release(before, arrays, sums, cohort, time.perf_counter() - started)

    def draw(self, number: int) -> list[str]:
        """The cohort of a round: labels in roster order, drawn by seed and round from those whom it may invite.

        Where rounds overlap, from those of them that are ready, if they are enough.
        """
        labels = self.experiment.invited(number)
        if not isinstance(self.nodes, Nodes):
            present = set(labels)
            labels = [label for label in self.nodes if label in present]
        size = self.experiment.cohort_size
        if self.experiment.strategy.at_once > 1:
            ready = set(self.grid.get_node_ids())
            found = [label for label in labels if self.nodes[label] in ready]
            labels = found if len(found) >= size else labels
        if size >= len(labels):
            return list(labels)
        rng = np.random.Generator(np.random.PCG64([self.experiment.seed, number]))
        return [labels[i] for i in sorted(rng.choice(len(labels), size=size, replace=False))]

    def configure(self, number: int, cohort: list[str], arrays: Arrays, clip: float = 0.0) -> list[Message]:
        """The strategy's training messages, for exactly this cohort, with the clip norm in force where it adapts.

        Raises:
            ConfigError: it asks only some of them, by a draw of its own that no seed fixes.
        """
        record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        nodes = [self.nodes[label] for label in cohort]
        view = CohortGrid(self.grid, nodes)
        messages = list(self.strategy.configure_train(number, record, ConfigRecord(), view))
        if sorted(message.metadata.dst_node_id for message in messages) != sorted(nodes):
            raise ConfigError("must ask the whole cohort: fraction_train = 1", key="strategy.name")
        # Flower's strategies give one content to all of their messages.
        for content in {id(message.content): message.content for message in messages}.values():
            content["tacit"] = ConfigRecord({"run": self.run_id, "round": number})
            if self.scaling:
                content["scaling"] = ConfigRecord({"constants": self.scaling})
            if clip:
                content["clip"] = ConfigRecord({"norm": clip_text(clip)})
        return messages

    def collecting(self, number: int, messages: list[Message]) -> Replies:
        """To be called for the replies; where rounds are under way at a time, they are being collected already."""
        if isinstance(self.grid, AtOnce):
            return self.grid.begin(number, messages, self.experiment.secure_aggregation.deadline_seconds)
        return partial(self.collect, messages)

    def collect(self, messages: list[Message]) -> list[Message]:
        """Sends them; under secure aggregation one combined reply comes back."""
        timeout = self.experiment.secure_aggregation.deadline_seconds
        return list(self.grid.send_and_receive(messages, timeout=timeout))

    def aggregate(self, number: int, replies: list[Message]) -> tuple[Arrays, dict[str, float]]:
        """The strategy's next model and the metric sums.

        Raises:
            RunFailed: there is nothing to aggregate.
        """
        record, metrics = self.strategy.aggregate_train(number, replies)
        if record is None:
            refusals = spelled(self._facts().refusals)
            raise RunFailed(f"round {number}: no update arrived; sites refused: {refusals}")
        arrays = {name: array.numpy().astype(np.float32) for name, array in record.items()}
        return arrays, _numbers(metrics)

    def release(
        self, before: Progress, arrays: Arrays, sums: Mapping[str, float], cohort: list[str], seconds: float
    ) -> Progress:
        """Makes the round durable, all of it together, before anybody hears of it."""
        metrics, monitor = means(sums), self.experiment.evaluation.monitor  # of the model before this round
        watched = before.watched(metrics.get(monitor), lower_is_better=lower_is_better(monitor))
        strategy, clip = save_state(self.strategy), self._next_clip(before.clip)
        after = replace(watched, round=before.round + 1, arrays=arrays, strategy=strategy, clip=clip)
        after = self._drawn(after)
        record = self._record(after.round, cohort, metrics, seconds)
        if counts := riders(sums):
            record["counts"] = counts
        self.store.save(after, {**record, "clip": before.clip or None})
        return after

    def resumed(self, initial: Arrays) -> Progress:
        """Where the stored run stands, with the strategy as it was then; a new run stands before round 1."""
        check_resumable(self.strategy)
        progress = self.store.load()
        if progress is None:
            progress = self._drawn(Progress(0, initial, clip=first_clip(self.experiment)))
            self.store.save(progress, None)
        progress = replace(progress, arrays=arranged(progress.arrays, initial))
        restore_state(self.strategy, progress.strategy)
        return progress

    def _drawn(self, progress: Progress) -> Progress:
        """With the cohorts of the rounds that will be under way, where there are several at a time."""
        at_once = self.experiment.strategy.at_once
        last = min(progress.round + at_once, self.experiment.training.rounds) if at_once > 1 else 0
        under_way = range(progress.round + 1, last + 1)
        return replace(progress, cohorts={n: progress.cohorts.get(n) or self.draw(n) for n in under_way})

    def stops(self, progress: Progress) -> bool:
        """Early stopping. It reads private metrics only, and changes nothing about what was paid."""
        patience = self.experiment.evaluation.patience
        return patience > 0 and progress.stale >= patience

    def _record(
        self, number: int, cohort: list[str], metrics: Mapping[str, float], seconds: float
    ) -> dict[str, Any]:
        """The round's line in rounds.jsonl."""
        facts = self._facts()
        return {
            "round": number,
            "seconds": seconds,
            "cohort": cohort,
            "survivors": list(facts.survivors),
            "refusals": dict(facts.refusals),
            "metrics": metrics,  # of the model that this round started from
            "epsilon": self._epsilon(number),
            "bytes_up": facts.bytes_up,
            "bits": facts.bits,
            "threshold": facts.threshold,
            "num_clipped": facts.num_clipped,
            "attempts": facts.attempts,
            "blamed": list(facts.blamed),
            "phases": dict(facts.phases),
            "at_once": self.experiment.strategy.at_once,
        }

    def _next_clip(self, clip: float) -> float:
        """Follows the noised bit of the round; stays where there is none."""
        budget, below = self.experiment.privacy.client, self._facts().below_clip
        return clip if not clip or budget is None or below is None else next_clip(clip, below, budget)

    def _epsilon(self, number: int) -> float | None:
        return None if self.plan.unit == "none" else self.plan.epsilon_after(number)

    def _facts(self) -> RoundFacts:
        facts: RoundFacts = getattr(self.grid, "facts", RoundFacts())
        return facts


def first_clip(experiment: Experiment) -> float:
    """The clip norm of the first round; 0 where it does not adapt."""
    budget = experiment.privacy.client
    adapts = budget is not None and budget.target_quantile > 0
    return experiment.secure_aggregation.update_clip if adapts else 0.0


def arranged(arrays: Arrays, like: Arrays) -> Arrays:
    """A model that was read back, in the order of the task's own: rounding goes coordinate by coordinate.

    Raises:
        StorageError: other arrays than the task's.
    """
    if {name: a.shape for name, a in arrays.items()} != {name: a.shape for name, a in like.items()}:
        raise StorageError("the stored model has other arrays than the task's; has the task's code changed?")
    return {name: arrays[name] for name in like}


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """Metric sums over the number of records; noise can take a mean out of [0, 1], so it is cut."""
    records = sums.get(NUM_RECORDS, 0.0)
    if not records > 0:  # noise can do that too; false for NaN
        return {}
    others = {NUM_RECORDS, *riders(sums)}
    return {name: min(max(v / records, 0.0), 1.0) for name, v in sums.items() if name not in others}


def _numbers(metrics: MetricRecord | None) -> dict[str, float]:
    return {k: float(v) for k, v in (metrics or {}).items() if isinstance(v, (int, float))}
