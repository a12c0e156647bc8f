"""Local training at one site: Poisson-sampled steps, clipped per record and noised where the plan says so.

One path serves private and non-private runs. The plan decides whether a step's gradient sum is clipped and noised
(`client.choice`) or taken as it is (`PlainGradients`).

Guarantees:
    The sampling rate, the number of steps and the normaliser come from the plan and the declared size; none of
    them changes when a record is added.
    Noise and, in a private run, Poisson draws come from keys of the operating system; no seed of torch, NumPy or
    `random` changes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.draws import drawn_from, generator_on
from client.following import Following
from client.normalised import factors
from client.precision import check_precision, layers_in, widened
from client.schedule import learning_rate, make_optimizer, set_rate
from client.views import Augmentation
from tacit.config import Experiment
from tacit.errors import ConfigError
from tacit.privacy.noise import Keys, Stream
from tacit.privacy.plan import PrivacyPlan
from tacit.privacy.streams import stream_of
from tacit.tasks import Follows, Records, Task
from tacit.tasks.transfer import rate_factors
from tacit.tasks.weights import Arrays, build_model, load_arrays, read_arrays

_RECORDS: Final = 1 << 14  # whose draws are made at a time


class Job(NamedTuple):
    """One client's part in a round.

    Attributes:
        site: its label, part of the index of its keys.
        records: its training records, any number, none included.
        declared_rows: the size that it declared; with q it makes the normaliser.
    """

    site: str
    records: Records
    declared_rows: int


Deltas = dict[str, NDArray[np.float32]]


class Gradients(Protocol):
    """Fills `.grad` of every parameter with one step's gradient, divided by the public normaliser.

    Attributes:
        engine: how, in a few words for the report.
    """

    @property
    def engine(self) -> str:
        """See the class."""
        ...

    def fill(self, batch: Records, normaliser: float, noise: Stream) -> None:
        """One step's gradient for a batch that may be empty."""
        ...


@dataclass
class PlainGradients:
    """The gradient sum of the batch over the normaliser, unclipped and without noise."""

    model: nn.Module
    task: Task
    max_batch: int = 0
    precision: str = "float32"
    engine: str = "of the whole batch"

    def fill(self, batch: Records, normaliser: float, noise: Stream) -> None:
        """See `Gradients`."""
        for parameter in self.model.parameters():
            # Zeros, not None: the rest of the step is the same whether a batch is empty or not.
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        for part in portions(batch, self.max_batch):
            with layers_in(self.precision, part.inputs.device):
                outputs = self.model(part.inputs)
            losses = record_losses(self.task, outputs, part.targets, part.views)
            (losses.sum() / normaliser).backward()  # type: ignore[no-untyped-call]


class LocalTrainer:
    """A model wrapped once per run; each call of `train` loads weights and runs one round's steps.

    Args:
        task: what is trained.
        plan: clipping, noise, sampling and number of steps.
        experiment: optimiser and schedule.
    """

    def __init__(self, task: Task, plan: PrivacyPlan, experiment: Experiment) -> None:
        self.task, self.plan, self.settings = task, plan, experiment.training
        self.proximal_mu = experiment.strategy.proximal_mu
        self.steps = {site.label: site.steps for site in experiment.federation.sites if site.steps}
        self.factors = factors(experiment)
        self.device = pick_device(experiment.device)
        check_precision(self.settings.precision, self.device)
        self.model = build_model(task, private=plan.max_grad_norm is not None).to(self.device)
        self.rate_factors = rate_factors(self.model, self.settings.rate_factors)
        self.gradients = self._gradients()
        self.following = self._following(experiment)
        self.augmentation = Augmentation(experiment, task)
        # Tacit's own are known not to mix records.
        self.is_tried = plan.max_grad_norm is None or not experiment.task.is_own

    def _gradients(self) -> Gradients:
        if self.plan.max_grad_norm is None:
            return PlainGradients(self.model, self.task, self.settings.max_batch, self.settings.precision)
        from client.choice import private_gradients

        bounds = self.plan.max_grad_norm, self.plan.noise_multiplier
        passes = self.settings.max_batch, self.settings.precision
        return private_gradients(self.model, self.task, *bounds, *passes)

    def _following(self, experiment: Experiment) -> Following | None:
        """What follows, of Tacit's own tasks: nobody knows what another one keeps of records for it."""
        if experiment.task.is_own or not hasattr(self.task, "follower"):
            return None
        other = build_model(self.task, private=self.plan.max_grad_norm is not None).to(self.device)
        return Following(cast("Follows", self.task), other, experiment.task.generator_every)

    @property
    def engine(self) -> str:
        """How the gradients of a step are made, as far as the steps so far tell."""
        precision = self.settings.precision
        return self.gradients.engine + ("" if precision == "float32" else f", layers in {precision}")

    def train(self, arrays: Arrays, job: Job, round_number: int, keys: Keys) -> Deltas:
        """One round of local steps from `arrays`; returns trained minus received, per array; see `normalised` too.

        Args:
            arrays: the global model.
            job: whose.
            round_number: from 1; the learning-rate schedule reads it.
            keys: where Poisson draws and noise come from.

        Raises:
            ConfigError: the model or the task is not what its protocol says; see `record_losses` and `check_alone`.
        """
        return self.steps_from(arrays, job, round_number, keys)

    def steps_from(
        self,
        arrays: Arrays,
        job: Job,
        round_number: int,
        keys: Keys,
        *,
        pull: tuple[float, Arrays] | None = None,
        correction: Arrays | None = None,
    ) -> Deltas:
        """What `train` does, with steps that are drawn elsewhere.

        Args:
            arrays, job, round_number, keys: as of `train`.
            pull: mu and a model that each step is drawn towards; FedProx's, and the model received, if not given.
            correction: added to the gradient of each step.
        """
        load_arrays(self.model, arrays)
        self.model.train()
        records = Records(job.records.features.to(self.device), job.records.targets.to(self.device))
        if not self.is_tried:
            self.is_tried = check_alone(self.model, self.task, records)
        mu, origin = (self.proximal_mu, arrays) if pull is None else pull
        start, shift = self._tensors(origin if mu else {}), self._tensors(correction or {})
        optimizer = self.optimizer(self._named_parameters(), round_number)
        normaliser = self.plan.sampling_rate * job.declared_rows
        if self.following is not None:
            key = keys.key("follow", job.site, round_number)
            self.following.begin(arrays, lambda own: self.optimizer(own, round_number), key)
        fixed = {name: tensor.detach().clone() for name, tensor in self._untrained()}
        # One stream for all steps of a round: each reads on where the one before has stopped.
        sampling, noise = (
            stream_of(keys, purpose, job.site, round_number) for purpose in ("poisson", "noise")
        )
        generator = generator_on(self.device, keys.key("augment", job.site, round_number))
        with drawn_from(keys.key("torch", job.site, round_number), self.device):
            # At most as many as the plan charges for.
            num_steps = self.steps.get(job.site, self.plan.steps_per_round)
            batches = poisson_batches(records, self.plan.sampling_rate, num_steps, sampling)
            for step, drawn in enumerate(batches):
                batch = self.augmentation.seen(drawn, generator)
                self.gradients.fill(batch, normaliser, noise)
                self._pull_towards(start, mu)
                self._correct(shift)
                self._pull_to_zero()
                if self.settings.schedule_by == "step":
                    set_rate(optimizer, learning_rate(self.settings, round_number, step))
                optimizer.step()
                if self.following is not None:
                    self.following.step(self.model, step, learning_rate(self.settings, round_number, step))
        if self.plan.max_grad_norm is not None:
            self._check_unchanged(fixed)
        trained = read_arrays(self.model)
        factor = np.float32(self.factors.get(job.site, 1.0))
        # np.asarray: a difference of arrays without dimensions is no array.
        return {name: np.asarray(factor * (trained[name] - arrays[name])) for name in arrays}

    def _tensors(self, arrays: Arrays) -> list[Tensor]:
        """The arrays of the parameters that are trained, in their order; none of none."""
        named = self.model.named_parameters() if arrays else ()
        return [torch.tensor(arrays[name]).to(p) for name, p in named if p.requires_grad]

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (p for _, p in self._named_parameters())

    def _untrained(self) -> Iterator[tuple[str, Tensor]]:
        """All of the model that no step moves: buffers, and parameters that are frozen and follow nothing."""
        named = chain(self.model.named_buffers(), self.model.named_parameters())
        follow = self.following.names if self.following is not None else ()
        return ((name, tensor) for name, tensor in named if not tensor.requires_grad and name not in follow)

    def _check_unchanged(self, fixed: Mapping[str, Tensor]) -> None:
        """Raises `ConfigError` where records have reached the model otherwise than by a noised gradient."""
        for name, tensor in self._untrained():
            if not torch.equal(tensor, fixed[name]):
                raise ConfigError(
                    f"{name!r} changed in training and is no trained parameter: no noise protects it",
                    key="task",
                )

    def _pull_towards(self, start: list[Tensor], mu: float) -> None:
        """FedProx (Li et al. 2020, eq. 2): adds mu (w - w_global), which depends on no record."""
        if mu:
            for parameter, origin in zip(self._parameters(), start, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - origin, alpha=mu)

    def _correct(self, shift: list[Tensor]) -> None:
        """SCAFFOLD (Karimireddy et al. 2020, algorithm 1, line 10): adds c - c_i, which is of earlier rounds."""
        for parameter, tensor in zip(self._parameters() if shift else (), shift, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(tensor)

    def _pull_to_zero(self) -> None:
        """Adds the gradient of l1 |w|_1, which depends on no record."""
        if self.settings.l1:
            for parameter in self._parameters():
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach().sign(), alpha=self.settings.l1)

    def optimizer(
        self, named: Iterable[tuple[str, nn.Parameter]], round_number: int
    ) -> torch.optim.Optimizer:
        """A fresh one, with the learning rate of the round."""
        rate = learning_rate(self.settings, round_number)
        return make_optimizer(self.settings, named, self.rate_factors, rate)


def record_losses(task: Task, outputs: Tensor, targets: Tensor, views: int = 1) -> Tensor:
    """The task's loss of each record, the mean over its views: shape (rows,); in float32 also after layers in bfloat16.

    Args:
        task: gives the loss.
        outputs: shape (rows * views, ...).
        targets: shape (rows, ...).
        views: of each record.

    Raises:
        ConfigError: it has another shape. A mean over the batch, say, would scale each record's gradient by how
            many others there are, and so tie it to them.
    """
    if views > 1:
        targets = targets.repeat_interleave(views, 0)
    losses = task.loss(widened(outputs), targets)
    if losses.shape != (len(targets),):
        raise ConfigError(
            f"loss must be one number per record, not of shape {tuple(losses.shape)}", key="task"
        )
    return losses.view(-1, views).mean(1) if views > 1 else losses


def check_alone(model: nn.Module, task: Task, records: Records) -> bool:
    """Tries whether the loss of one record depends on another one, by the model or the loss.

    Returns:
        Whether it could be tried: there are two records that differ.

    Raises:
        ConfigError: it does, and then a record moves more than its own gradient, and clipping bounds nothing; or
            the same batch has other losses the next time, and nobody can tell.
    """
    others = (records.features != records.features[:1]).flatten(1).any(1).nonzero().flatten()
    if not len(others):
        return False
    first = torch.zeros_like(others[:1])

    def beside(other: Tensor) -> Tensor:
        """The loss of the first record."""
        both = torch.cat([first, other])
        with drawn_from(bytes(32), records.features.device), torch.no_grad():
            return record_losses(task, model(records.features[both]), records.targets[both])[:1]

    wanted = beside(others[:1])

    def differs(got: Tensor) -> bool:
        return not torch.allclose(got, wanted, rtol=1e-4, atol=1e-6, equal_nan=True)

    if differs(beside(others[:1])):
        raise ConfigError(
            "the model draws random numbers otherwise than from torch's own generators: it cannot be tried whether"
            " records depend on one another",
            key="task",
        )
    if differs(beside(first)):
        raise ConfigError(
            "the loss of a record depends on the others of its batch: none is protected", key="task"
        )
    return True


def poisson_batches(records: Records, rate: float, num_steps: int, stream: Stream) -> Iterator[Records]:
    """Of each step: each record is in with probability `rate`, independently; a batch may be empty.

    A record's draws for all steps are neighbours in the stream, so that one record more at the end changes no draw of
    the others: with the same randomness it moves each sum by its own gradient and nothing else, where the model draws
    nothing itself; `client.draws` says why that does no harm either.
    """
    drawn = np.empty((records.num_rows, num_steps), dtype=np.bool_)
    for start in range(0, records.num_rows, _RECORDS):
        part = drawn[start : start + _RECORDS]
        part[:] = stream.bernoulli(part.size, rate).reshape(part.shape)
    for step in range(num_steps):
        chosen = torch.from_numpy(np.flatnonzero(drawn[:, step])).to(records.targets.device)
        yield Records(records.features[chosen], records.targets[chosen])


def portions(batch: Records, most: int) -> Iterator[Records]:
    """A batch in parts of at most so many records (0 = as one), each with its views; nothing of an empty one."""
    if batch.num_rows and not 0 < most < batch.num_rows:
        yield batch
        return
    for start in range(0, batch.num_rows, most or 1):
        yield type(batch)(batch.features[start : start + most], batch.targets[start : start + most])


def pick_device(wish: str) -> torch.device:
    """ "auto" is CUDA where a GPU is at hand, else the CPU.

    Raises:
        ConfigError: "cuda" was asked for and there is none.
    """
    if wish == "cuda" and not torch.cuda.is_available():
        raise ConfigError('no CUDA device is available; use device = "auto" or "cpu"', key="device")
    return torch.device("cuda" if wish != "cpu" and torch.cuda.is_available() else "cpu")
