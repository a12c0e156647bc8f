"""A site that takes part with somebody else's Flower app: the participant of `client/bridge.py`.

All but guard, training and encoding is as in any other run: policy, journal, sessions, ledger, the secure sum.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from client import guard
from client.participant import Participant, Run, keys_for
from client.sessions import FolderSessions, MemorySessions, Sessions
from client.site import Site
from tacit.bridge import FILE, AppConfig, Arrays, Asks, Terms, federation_of, may_be_told, summed_arrays
from tacit.config import Federation
from tacit.errors import ProtocolError, Refused
from tacit.privacy.plan import PrivacyPlan
from tacit.secagg.contexts import text_digest
from tacit.secagg.encoder import Encoder
from tacit.update import EncodedUpdate, LocalUpdate

LOG: Final = logging.getLogger(__name__)


class BridgedRun(Run):
    """A `Run` in which the app trains: what one sum asks it for, and what the strategy tells it."""

    def __init__(self, terms: Terms, federation: Federation, asks: Asks, config: AppConfig) -> None:
        self.terms, self.asks = terms, asks
        self.experiment = terms.experiment(federation, asks, config)
        # The same for every sum of these terms, since the messages after the first do not repeat the configuration.
        self.digest = text_digest(terms.experiment(federation).to_toml())
        self.plan = PrivacyPlan.of(self.experiment)
        self.keys = keys_for(self.experiment, self.plan)
        self.task: Any = None  # the app has its own, and its own trainer and metrics
        self.summed = ()

    def encoder(self, arrays: Arrays, clip: float | None = None) -> Encoder:
        """See `Run`."""
        return self.terms.encoder(self.asks, arrays)

    def model_shapes(self, arrays: Arrays) -> dict[str, tuple[int, ...]]:
        """Of the model received: the app has its own, and refuses another."""
        return {name: array.shape for name, array in arrays.items()}


class BridgedParticipant(Participant):
    """One site's part, with the app's answer in the place of our training."""

    def __init__(self, site: Site, sessions: Sessions) -> None:
        self._terms = Terms.load(site.folder / FILE)
        self._federation = federation_of(site.roster())
        super().__init__(BridgedRun(self._terms, self._federation, "train", {}), site, sessions)
        guard.admit(site, self.run.experiment)
        self._app: Callable[[], RecordDict] = RecordDict

    def ask(self, asks: Asks, config: AppConfig, app: Callable[[], RecordDict]) -> None:
        """Turns to the sum of a first message: what it asks for, and how the app answers it."""
        if not self._terms.metrics(asks) and asks == "evaluate":
            raise Refused("evaluation", "bridge.toml names no evaluate_metrics")
        self.run = BridgedRun(self._terms, self._federation, asks, config)
        self._app = app

    def guard(self, run_id: str, round_number: int, arrays: Arrays) -> None:
        """See `Participant`; whether the arrays are the app's model, the app itself will say."""
        experiment = self.run.experiment
        guard.admit(self.site, experiment)
        self.site.policy.check_model(sum(array.size for array in arrays.values()))
        if not 1 <= round_number <= experiment.training.rounds:
            raise Refused(
                "round", f"sum {round_number} of a run; bridge.toml allows {experiment.training.rounds}"
            )
        for name in summed_arrays(arrays):
            if not np.isfinite(arrays[name]).all():
                raise Refused("model-values", f"array {name!r} has a value that is not finite")

    def update(self, run_id: str, round_number: int, arrays: Arrays) -> LocalUpdate:
        """Asks the app. What leaves of its answer is the difference of the models and the metrics agreed on."""
        assert isinstance(self.run, BridgedRun)
        answer, delta = self._app(), dict[str, NDArray[Any]]()
        if self.run.asks == "train":
            trained = trained_arrays(answer, arrays)
            delta = {n: np.asarray(trained[n], np.float64) - arrays[n] for n in summed_arrays(arrays)}
        reported = reported_metrics(answer)
        metrics = {}
        for name, bound in self._terms.metrics(self.run.asks).items():
            if name not in reported:
                raise Refused("metrics", f"the app reports no number {name!r}")
            if not np.isfinite(reported[name]):
                raise Refused("not-finite", f"the metric {name!r} is not a finite number")
            # Within the bound for any weight; the app's own weight, its exact number of rows, stays here.
            metrics[name] = min(max(reported[name], -bound), bound) * self.weight
        return LocalUpdate(delta, self.weight, metrics)

    def encode(self, round_number: int, arrays: Arrays, update: LocalUpdate) -> EncodedUpdate:
        """See `Participant`. How much was cut is said here, in this site's own log, and nowhere else."""
        encoded = super().encode(round_number, arrays, update)
        norm = float(np.sqrt(sum(float(np.vdot(d, d)) for d in update.delta.values())))
        clip = self._terms.secure_aggregation.update_clip
        if encoded.clipped:
            LOG.warning("sum %d: an update of norm %.4g was cut to %g", round_number, norm, clip)
        elif update.delta:
            LOG.info("sum %d: an update of norm %.4g, within the clip norm %g", round_number, norm, clip)
        return encoded


def trained_arrays(answer: RecordDict, arrays: Arrays) -> Arrays:
    """The model in the app's answer.

    Raises:
        Refused: "app-answer", there is none, or it is not of the shape of the one received.
    """
    records = list(answer.array_records.values())
    if len(records) != 1:
        raise Refused("app-answer", f"the app answers with {len(records)} records of arrays; one is needed")
    trained = {name: array.numpy() for name, array in records[0].items()}
    shapes = {name: array.shape for name, array in trained.items()}
    if shapes != {name: array.shape for name, array in arrays.items()}:
        raise Refused("app-answer", "the app's model has other arrays than the one received")
    return trained


def reported_metrics(answer: RecordDict) -> dict[str, float]:
    """Every number in the app's records of metrics; lists have no place in the sum."""
    numbers: dict[str, float] = {}
    for record in answer.metric_records.values():
        numbers |= {name: float(v) for name, v in record.items() if isinstance(v, int | float)}
    return numbers


def app_config(values: dict[str, Any]) -> AppConfig:
    """What the strategy tells the app.

    Raises:
        ProtocolError: "fields", a value is no single text, finite number or truth value.
    """
    for name, value in values.items():
        if not may_be_told(value):
            raise ProtocolError("fields", f"the configuration's {name!r} is no single finite value")
    return values


@lru_cache(maxsize=4096)
def bridged(folder: Path, keep_in_memory: bool) -> BridgedParticipant:
    """The participant of one site folder; files are read anew by a new process."""
    sessions = MemorySessions() if keep_in_memory else FolderSessions(folder)
    return BridgedParticipant(Site.open(folder), sessions)
