"""What only the harness may know: exact metrics of any model on any site's records, and what training without
federation would have given. None of it is private; the report marks it so.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from client.kept import newest
from client.training import Job, LocalTrainer
from simulations.truth import best_outputs
from tacit.algorithms import PERSONAL
from tacit.config import Experiment, Privacy
from tacit.encoding import NUM_RECORDS
from tacit.personal import first_arrays
from tacit.privacy.noise import SeededKeys, Stream
from tacit.privacy.plan import PrivacyPlan
from tacit.tasks import Records, Summarises, Task, load_task
from tacit.tasks.summed import Summed
from tacit.tasks.weights import Arrays, build_model, initial_arrays, load_arrays

PREDICTIONS = 200  # whose time is taken
LATENCY = ("prediction", "prediction_p95")  # of the report's timings
HELD_BACK = 0.25  # of the training records, where a baseline's learning rate is chosen
RATE_FACTORS = (3.0, 1.0, 0.3, 0.1, 0.03)  # of the federation's rate
Metrics = dict[str, float | None]  # None = undefined on these records


@dataclass(frozen=True)
class SiteRecords:
    """One site's records, as the harness sees them."""

    label: str
    train: Records
    test: Records


class FederatedModel:
    """A task with the model that the federation trains, so that baselines differ in nothing but who trains.

    In a private run BatchNorm is replaced; without privacy the task's own model is taken.
    """

    def __init__(self, task: Task, *, private: bool) -> None:
        self._task, self._private = task, private

    def model(self) -> nn.Module:
        """See `Task`."""
        return build_model(self._task, private=self._private)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


class Harness:
    """Evaluates models and trains baselines on the sites of a simulation.

    Args:
        experiment: resolved, with its sites.
        sites: folder with one folder per site.
        task: what is trained; with its scaling constants, if it has any.
    """

    def __init__(self, experiment: Experiment, sites: Path, task: Task | None = None) -> None:
        private = experiment.privacy.record is not None
        self.experiment = experiment
        self.task = cast("Task", FederatedModel(task or load_task(experiment), private=private))
        # Of a population that is simulated the harness knows the pool, in the one folder there is.
        labels = [site.label for site in experiment.federation.sites] or ["pool"]
        self._files = [sites / str(i) / experiment.data.file for i in range(len(labels))]
        self.sites = [
            SiteRecords(label, *(self.task.read(file, s) for s in ("train", "test")))
            for label, file in zip(labels, self._files, strict=True)
        ]
        self.has_test = any(site.test.num_rows for site in self.sites)
        self._model = self.task.model()
        own = (self._own(sites / str(i), private) for i in range(len(labels)))
        self.own = [arrays for arrays in own if arrays is not None]

    def _own(self, folder: Path, private: bool) -> Arrays | None:
        """What a site has kept of its own model; None where the strategy keeps none."""
        if self.experiment.strategy.name not in PERSONAL:
            return None
        first = first_arrays(self.experiment, self.task, private=private)[1]
        return {**first, **(newest(folder) or {})}

    def metrics(self, arrays: Arrays, records: Sequence[Records]) -> Metrics:
        """Metrics of a model over the union of some sets of records."""
        load_arrays(self._model, arrays)
        return self._metrics(records)

    def per_site(self, arrays: Arrays) -> dict[str, Metrics]:
        """Metrics of one model at each site."""
        load_arrays(self._model, arrays)
        return {site.label: self._metrics([site.test]) for site in self.sites}

    def overall(self, arrays: Arrays) -> Metrics:
        """Metrics of one model over all sites' held-out records."""
        return self.metrics(arrays, [site.test for site in self.sites])

    def per_site_own(self, arrays: Arrays) -> dict[str, Metrics]:
        """Metrics at each site of the model that it uses: the common one and, where it keeps some, its own arrays."""
        if not self.own:
            return self.per_site(arrays)
        pairs = zip(self.sites, self.own, strict=True)
        return {site.label: self.metrics({**arrays, **own}, [site.test]) for site, own in pairs}

    def latency(self, arrays: Arrays) -> dict[str, float]:
        """Seconds that predicting one record by itself takes on this machine: their median and 95th percentile.

        Empty where no record is held out.
        """
        if not self.has_test:
            return {}
        features = torch.cat([site.test.features[:PREDICTIONS] for site in self.sites])[:PREDICTIONS]
        load_arrays(self._model, {**arrays, **(self.own[0] if self.own else {})})
        self._model.eval()
        taken = []
        with torch.inference_mode():
            for record in (features[:1], *torch.split(features, 1)):  # the first warms up
                begun = time.perf_counter()
                self._model(record)
                taken.append(time.perf_counter() - begun)
        return dict(zip(LATENCY, np.percentile(taken[1:], (50, 95)).tolist(), strict=True))

    def summed(self, arrays: Arrays, part: Summed) -> dict[str, float]:
        """What rides along with the metrics, of one model, added up over the sites as a federation would."""
        load_arrays(self._model, arrays)
        self._model.eval()
        totals = Counter[str]()
        for site in self.sites:
            with torch.no_grad():
                outputs = self._model(site.test.features)
            totals.update(part.sums(self._model, outputs, site.test))
        return dict(totals)

    def pooled(self) -> Arrays:
        """All sites' records at one place, without privacy: what federation cannot beat by much."""
        return self._train("pooled", union([site.train for site in self.sites]))

    def local(self) -> dict[str, Arrays]:
        """Each site by itself, without privacy: what federation must beat to be worth it."""
        return {site.label: self._train(site.label, site.train) for site in self.sites}

    def majority(self) -> dict[str, Metrics]:
        """Accuracy of each site's own most frequent training class; classification only."""
        result: dict[str, Metrics] = {}
        for site in self.sites:
            if site.train.targets.dtype.is_floating_point or not site.test.num_rows:
                continue
            guess = torch.mode(site.train.targets).values
            result[site.label] = {"accuracy": float((site.test.targets == guess).double().mean())}
        return result

    def best(self) -> tuple[Metrics, dict[str, Metrics]] | None:
        """Metrics of the best possible model, over all held-out records and at each site; None where nobody knows."""
        outputs = [best_outputs(path, self.experiment) for path in self._files]
        known = [part for part in outputs if part is not None]
        if len(known) < len(self.sites) or not isinstance(self.task, Summarises) or not self.has_test:
            return None
        targets = [site.test.targets for site in self.sites]
        per_site = {
            site.label: _floats(self.task.summary(part, site.test.targets))
            for site, part in zip(self.sites, known, strict=True)
            if site.test.num_rows
        }
        return _floats(self.task.summary(torch.cat(known), torch.cat(targets))), per_site

    def _train(self, label: str, records: Records) -> Arrays:
        """As many steps as the federation makes, from the same initial weights, at the learning rate that suits it.

        The federation's own rate may be far too large here: in a private run it is chosen for clipped gradients.
        """
        rate = self.experiment.training.learning_rate
        if self.experiment.simulation.tune_baselines:
            rate = self._suitable_rate(label, records)
        return self._trained(label, records, rate)

    def _suitable_rate(self, label: str, records: Records) -> float:
        """The rate, of a few around the federation's, with the smallest loss on rows that it was not trained on."""
        rate = self.experiment.training.learning_rate
        draws = Stream(SeededKeys(self.experiment.seed).key("held back", label)).uniform(records.num_rows)
        back = torch.from_numpy(draws < HELD_BACK)
        if not 0 < int(back.sum()) < records.num_rows:
            return rate
        kept, held = (Records(records.features[part], records.targets[part]) for part in (~back, back))
        losses = {
            rate * factor: self._loss(self._trained(label, kept, rate * factor), held)
            for factor in RATE_FACTORS
        }
        return min(losses, key=losses.__getitem__)

    def _trained(self, label: str, records: Records, rate: float) -> Arrays:
        training = self.experiment.training.model_copy(update={"learning_rate": rate})
        experiment = self.experiment.model_copy(update={"privacy": Privacy(), "training": training})
        plan = PrivacyPlan.of(experiment)
        trainer = LocalTrainer(self.task, plan, experiment)
        arrays: Arrays = initial_arrays(self.task, private=False, seed=experiment.seed)
        keys, job = SeededKeys(experiment.seed), Job(f"baseline/{label}", records, max(records.num_rows, 1))
        for number in range(1, experiment.training.rounds + 1):
            delta = trainer.train(arrays, job, number, keys)
            arrays = {name: arrays[name] + delta[name] for name in arrays}
        return arrays

    def _loss(self, arrays: Arrays, records: Records) -> float:
        """The mean loss of a model, infinite where it has diverged."""
        load_arrays(self._model, arrays)
        self._model.eval()
        with torch.no_grad():
            loss = float(self.task.loss(self._model(records.features), records.targets).double().mean())
        return loss if math.isfinite(loss) else math.inf

    def _metrics(self, records: Sequence[Records]) -> Metrics:
        together = union(records)
        if not together.num_rows:
            return {}
        self._model.eval()
        with torch.no_grad():
            outputs = self._model(together.features)
        if isinstance(self.task, Summarises):
            return _floats(self.task.summary(outputs, together.targets))
        per_record = self.task.metrics(outputs, together.targets)
        return {name: float(v.double().mean()) for name, v in per_record.items() if name != NUM_RECORDS}


def _floats(metrics: Mapping[str, float]) -> Metrics:
    return {name: float(value) for name, value in metrics.items()}


def union(records: Sequence[Records]) -> Records:
    """All records of several sets."""
    return Records(torch.cat([r.features for r in records]), torch.cat([r.targets for r in records]))


def site_mean(metrics: Mapping[str, Metrics]) -> Metrics:
    """The plain mean over sites of each metric that all sites have a value for."""
    values = list(metrics.values())
    defined = [{name: v for name, v in metrics.items() if v is not None} for metrics in values]
    names = set.intersection(*(set(m) for m in defined)) if defined else set()
    return {name: float(np.mean([m[name] for m in defined])) for name in sorted(names)}
