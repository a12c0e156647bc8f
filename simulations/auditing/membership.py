"""Who was in the training? The likelihood-ratio attack on the released model alone.

Carlini, Chien, Nasr, Song, Terzis, Tramer, "Membership inference attacks from first principles", S&P 2022 (LiRA). Each
record is in the training by a coin. The attacker trains shadow federations, half of the records in each, and fits a
Gaussian to the confidence of each record over those that had it and those that had not; `online` compares both,
`offline` knows the second alone. One variance is fitted for all records, as there, where shadows are few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from client.participant import Participant
from client.training import Job, LocalTrainer, record_losses
from simulations.auditing.one_run import Scores, attack_of
from simulations.auditing.watched import attempt, divided, train, with_rows
from simulations.evaluate import union
from simulations.stacked import StackedTrainer, unstackable
from tacit.config import Experiment
from tacit.errors import ConfigError
from tacit.privacy.noise import SystemKeys
from tacit.privacy.plan import PrivacyPlan
from tacit.report.audit_record import Attack
from tacit.tasks import Records, Task, load_task
from tacit.tasks.weights import Arrays, initial_arrays, load_arrays

SHADOWS: Final = 32
VIEW: Final = "the released model; shadow trainings on records of the same kind"

Mask = NDArray[np.bool_]


class Halves:
    """Which records of which site are in the training.

    Args:
        sites: the training records of each.
        seed: of the coins.
    """

    def __init__(self, sites: Sequence[Records], seed: int) -> None:
        random = np.random.default_rng([seed, 2])
        self.sites = sites
        self.masks = [random.random(site.num_rows) < 0.5 for site in sites]

    @property
    def coins(self) -> Mask:
        """Of all sites, one after the other."""
        return np.concatenate(self.masks)

    def records(self, site: int) -> Records:
        """What a site trains on."""
        chosen = torch.from_numpy(self.masks[site])
        return Records(self.sites[site].features[chosen], self.sites[site].targets[chosen])

    def give(self, client: Participant) -> None:
        """Has a participant train on its half."""
        honest = client.records

        def records(split: str) -> Records:
            return self.records(client.position) if split == "train" else honest(split)

        setattr(client, "records", records)  # noqa: B010 - of this one site, in this one run


def audit_membership(
    experiment: Experiment,
    out: Path,
    *,
    seed: int,
    shadows: int = SHADOWS,
    variant: Literal["online", "offline"] = "online",
    guesses: int = 0,
    on_part: Callable[[str], None] = lambda part: None,
) -> Attack:
    """Trains once on half of the records, and guesses from the released model which half.

    Args:
        experiment: what is audited.
        out: folder of this attack.
        seed: of the coins.
        shadows: how many shadow federations are trained.
        variant: what the attacker knows of records that were in.
        guesses: how many coins are guessed for the lower bound; 0 = a tenth, and 50 at least.
        on_part: told the name of each part.

    Raises:
        ConfigError: the scaling of the records is itself learned from them.
    """
    if refused := other_scaling(experiment):
        raise ConfigError(refused, key="data.schema.scaling")
    folder = attempt(out)
    on_part("dividing the data among sites")
    prepared = divided(experiment, out)
    resolved, task = prepared.experiment, load_task(prepared.experiment)
    sites = [task.read(prepared.data_path(i), "train") for i in range(len(prepared.sites))]
    resolved = with_rows(resolved, [records.num_rows / 2 for records in sites])
    target = Halves(sites, seed)
    on_part("training on half of the records")
    state = train(prepared, resolved, out, target.give)
    released = state.model_of(int(state.result["model_round"]))
    everybody, shadow = union(sites), Shadow(resolved, task)
    coins, confidences = [], []
    for number in range(1, shadows + 1):
        on_part(f"training shadow federation {number} of {shadows}")
        half = Halves(sites, seed + number)
        coins.append(half.coins)
        confidences.append(shadow.confidence(shadow.train(half), everybody))
    seen = shadow.confidence(released, everybody)
    scores = likelihood_ratio(seen, np.array(confidences), np.array(coins), variant)
    plan = PrivacyPlan.of(resolved)
    return attack_of(
        "membership", plan, scores, target.coins, guesses=guesses, view=VIEW, seconds=folder.seconds
    )


def other_scaling(experiment: Experiment) -> str:
    """Why shadow federations would not see the records as the target does; empty where they do."""
    columns = experiment.data.columns
    is_learned = columns is not None and columns.scaling == "federated"
    return "shadow trainings need records of one scaling" if is_learned else ""


class Shadow:
    """Trains federations of the same kind, without messages, ledgers and rounding.

    Args:
        experiment: with its sites.
        task: of the experiment.
    """

    def __init__(self, experiment: Experiment, task: Task) -> None:
        self._experiment, self._task, self._plan = experiment, task, PrivacyPlan.of(experiment)
        trainer = LocalTrainer(task, self._plan, experiment)
        self._trainer = StackedTrainer.of(trainer)
        self._stacks = not (unstackable(trainer.model) or trainer.augmentation.is_on)

    def train(self, half: Halves) -> Arrays:
        """The model of one federation."""
        experiment, keys = self._experiment, SystemKeys()
        private = self._plan.max_grad_norm is not None
        arrays: Arrays = initial_arrays(self._task, private=private, seed=experiment.seed)
        declared = experiment.federation.sites
        jobs = [Job(site.label, half.records(i), site.rows) for i, site in enumerate(declared)]
        random = np.random.default_rng()
        for number in range(1, experiment.training.rounds + 1):
            # In order: a stack of the same clients is made once.
            cohort = np.sort(random.choice(len(jobs), experiment.cohort_size, replace=False))
            if self._stacks:
                self._trainer.train_ahead(arrays, [jobs[i] for i in cohort], number, keys)
            total, weights = {name: np.zeros(a.shape) for name, a in arrays.items()}, 0.0
            for i in cohort:
                job = jobs[i]
                delta = self._trainer.train(arrays, job, number, keys)
                equal = experiment.strategy.weights == "equal"
                weight = 1.0 if equal else float(job.declared_rows)
                cut = weight * min(1.0, self._clip / max(_norm(delta), 1e-12))
                total = {name: value + cut * delta[name] for name, value in total.items()}
                weights += weight
            arrays = {
                name: np.asarray(arrays[name] + (value + self._noise(value, random)) / weights, np.float32)
                for name, value in total.items()
            }
        return arrays

    @property
    def _clip(self) -> float:
        return self._experiment.secure_aggregation.update_clip

    def _noise(self, value: Scores, random: np.random.Generator) -> Scores:
        """The noise of a promise for clients; the attacker's own trainings need no secret generator."""
        client = self._plan.client
        std = 0.0 if client is None else client.noise_multiplier * self._clip
        return std * random.standard_normal(value.shape)

    def confidence(self, arrays: Arrays, records: Records) -> Scores:
        """log(p / (1 - p)) of each record, where p = exp(-loss), the probability of its label if the loss is such."""
        model = self._trainer.model
        load_arrays(model, arrays)
        model.eval()
        with torch.no_grad():
            losses = record_losses(self._task, model(records.features), records.targets).double().numpy()
        losses = np.clip(np.nan_to_num(losses, nan=50.0), 1e-9, 50.0)
        return np.asarray(-losses - np.log(-np.expm1(-losses)))


def likelihood_ratio(
    seen: Scores, confidences: Scores, coins: Mask, variant: Literal["online", "offline"] = "online"
) -> Scores:
    """How much more probable the released model's confidence is if the record was in; shape (records,).

    Args:
        seen: confidences of the released model, shape (records,).
        confidences: of the shadows, shape (shadows, records).
        coins: which record was in which shadow, shape (shadows, records).
        variant: "offline" uses only shadows that had not the record.
    """
    present, absent = (_moments(confidences, who) for who in (coins, ~coins))
    away = (seen - absent[0]) / absent[1]
    if variant == "offline":
        return np.asarray(away)
    near = (seen - present[0]) / present[1]
    return np.asarray(away**2 / 2 - near**2 / 2)


def _moments(confidences: Scores, who: Mask) -> tuple[Scores, float]:
    """Mean of each record over some of the shadows, and one standard deviation for all."""
    counts = np.maximum(who.sum(axis=0), 1)
    means = (confidences * who).sum(axis=0) / counts
    residuals = ((confidences - means) * who) ** 2
    return means, float(np.sqrt(residuals.sum() / max(1, who.sum() - who.shape[1])) + 1e-9)


def _norm(delta: Arrays) -> float:
    return float(np.sqrt(sum(float((values.astype(np.float64) ** 2).sum()) for values in delta.values())))
