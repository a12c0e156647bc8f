"""Local training of many clients at once: their parameters are the rows of one matrix.

What one client does in `client.training` is done here for a cohort in the same few calls into torch: batched
products for the layers, book-keeping for the norms of records (see `client.bookkeeping`), and one optimiser step on
the matrix, which is each client's own step because every optimiser on offer works coordinate by coordinate. Each
client draws its batches and its noise from its own keys, so the result is the serial one up to the order of
floating-point sums.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from flwr.app import Context, Message
from numpy.typing import NDArray
from torch import Tensor, nn

from client.app import body, fields, ready, received_arrays
from client.bookkeeping import ELEMENTWISE, MARGIN, stack, supports
from client.plain import ids
from client.schedule import learning_rate, set_rate
from client.training import Deltas, Job, LocalTrainer, record_losses
from simulations.batches import Batches
from simulations.workers import PATIENCE, WorkersTrainer, no_workers
from tacit.algorithms import KEEPING
from tacit.encoding import STATISTICS_ROUND
from tacit.errors import ConfigError
from tacit.learning import RANKING
from tacit.privacy.noise import Keys
from tacit.privacy.streams import Normals
from tacit.secagg.messages import SetupRequest
from tacit.tasks.weights import Arrays

if TYPE_CHECKING:
    from client.participant import Participant, Run

LOG: Final = logging.getLogger(__name__)
_KEPT: Final = 8  # stacks
_LARGE: Final = 1e20  # squared norms below it are safe in float32
_VANISHED: Final = 1e-34  # of the squares of up to ten thousand numbers: 1.2e-38 each
_BYTES: Final = 1 << 24  # of one stack: parameters, gradients and activations, near the size of a cache


class StackedTrainer(LocalTrainer):
    """A `LocalTrainer` that trains a whole cohort at once, or has trained a client ahead together with its cohort.

    Guarantees:
        The result of a client is that of `LocalTrainer.train`, up to rounding in float32.
    """

    _ahead: dict[tuple[str, int], tuple[Arrays, Deltas]]
    _stacks: list[Stack]

    @classmethod
    def of(cls, trainer: LocalTrainer) -> StackedTrainer:
        """The same trainer with the ability; it shares the model."""
        stacked = cls.__new__(cls)
        stacked.__dict__.update(trainer.__dict__, _ahead={}, _stacks=[])
        return stacked

    def train(self, arrays: Arrays, job: Job, round_number: int, keys: Keys) -> Deltas:
        """See `LocalTrainer.train`. What was trained ahead from the same arrays is handed over, once."""
        origin, delta = self._ahead.pop((job.site, round_number), ({}, {}))
        if origin.keys() == arrays.keys() and all(np.array_equal(origin[n], arrays[n]) for n in arrays):
            return delta
        return super().train(arrays, job, round_number, keys)

    def train_ahead(self, arrays: Arrays, jobs: Sequence[Job], round_number: int, keys: Keys) -> None:
        """Trains these clients; what an earlier call trained and nobody asked for is forgotten."""
        self._ahead.clear()
        for part in self.stacks(jobs):
            for job, delta in zip(part.jobs, part.train(arrays, round_number, keys), strict=True):
                self._ahead[job.site, round_number] = arrays, self.unflatten(delta)

    def forget(self, site: str, round_number: int) -> None:
        """Lets go of what one client has trained ahead, if anything: it will train on something else."""
        self._ahead.pop((site, round_number), None)

    def unflatten(self, row: NDArray[np.float32]) -> Deltas:
        """The named arrays of one row of what `Stack.train` gives."""
        sizes = [p.numel() for p in self.model.parameters()]
        parts = np.split(row, np.cumsum(sizes)[:-1])
        named = zip(self.model.named_parameters(), parts, strict=True)
        return {name: part.reshape(tuple(p.shape)) for (name, p), part in named}

    def stacks(self, jobs: Sequence[Job]) -> Iterator[Stack]:
        """The clients in portions that fit into the cache; a few portions are kept for a cohort that comes again."""
        known = [job for part in self._stacks for job in part.jobs]
        if len(known) == len(jobs) and all(
            a.records is b.records and a.site == b.site and a.declared_rows == b.declared_rows
            for a, b in zip(known, jobs, strict=True)
        ):
            yield from self._stacks
            return
        self._stacks, size = [], self._clients_at_once(jobs)
        made = []
        for start, end in pairwise([*range(0, len(jobs), size), len(jobs)]):
            one = Stack(self, jobs[start:end])
            if len(jobs) <= _KEPT * size:  # of a larger cohort only one portion is in memory at a time
                made.append(one)
            yield one
        self._stacks = made

    def _clients_at_once(self, jobs: Sequence[Job]) -> int:
        widths = sum(p.shape[0] for p in self.model.parameters())  # activations of a record, and a bit more
        batch = max((self.plan.sampling_rate * job.records.num_rows for job in jobs), default=0.0)
        inputs = max((job.records.features.shape[-1] for job in jobs), default=0)
        parameters = sum(p.numel() for p in self.model.parameters())
        return max(1, int(_BYTES / (4 * (6 * parameters + 4 * batch * (widths + inputs) + 1))))


class Stack:
    """Some clients: their records below one another; row i of `weights` (clients, parameters) is client i's model."""

    def __init__(self, trainer: StackedTrainer, jobs: Sequence[Job]) -> None:
        self.trainer, self.jobs = trainer, jobs
        self.plan, self.device = trainer.plan, trainer.device
        self.shapes = [p.shape for p in trainer.model.parameters()]
        self.names = [name for name, _ in trainer.model.named_parameters()]
        self.layers = stack(trainer.model)
        self.linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        size = sum(shape.numel() for shape in self.shapes)
        self.weights = nn.Parameter(torch.zeros(len(jobs), size, device=self.device))
        self.gradient = torch.zeros_like(self.weights, requires_grad=False)
        self.parameters, self.sums = self._views(self.weights.detach()), self._views(self.gradient)
        # The last row stands in where a batch is shorter than the longest one.
        parts = [job.records for job in jobs]
        self.features, self.targets = (
            torch.cat([*column, column[0].new_zeros((1, *column[0].shape[1:]))]).to(self.device)
            for column in ([r.features for r in parts], [r.targets for r in parts])
        )
        self.batches = Batches(jobs, self.plan.steps_per_round, self.plan.sampling_rate)
        rows = torch.tensor([[float(job.declared_rows)] for job in jobs], dtype=torch.float64)
        self.normalisers = (self.plan.sampling_rate * rows).to(self.device)

    def _views(self, matrix: Tensor) -> list[Tensor]:
        """Each parameter's place in the rows of a matrix, shape (clients, *shape)."""
        parts = torch.split(matrix, [shape.numel() for shape in self.shapes], dim=1)
        return [part.view(len(matrix), *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def train(self, arrays: Arrays, round_number: int, keys: Keys) -> NDArray[np.float32]:
        """All steps of the round; each client's trained minus received, shape (clients, parameters)."""
        flat = np.concatenate([arrays[name].ravel() for name in self.names])
        start = torch.from_numpy(flat).to(self.device)
        self.weights.detach().copy_(start.expand_as(self.weights))
        sites = [job.site for job in self.jobs]
        noise = Normals(keys, "noise", sites if self.plan.max_grad_norm else (), round_number)
        step = self._stepper(round_number)
        for number, indices in enumerate(self.batches.draw(keys, round_number)):
            self.fill(torch.from_numpy(indices).to(self.device), noise)
            if mu := self.trainer.proximal_mu:
                self.gradient.add_(self.weights.detach() - start, alpha=mu)
            if l1 := self.trainer.settings.l1:
                self.gradient.add_(self.weights.detach().sign(), alpha=l1)
            step(number)
        changes: NDArray[np.float32] = (self.weights.detach() - start).cpu().numpy()
        return changes

    def _stepper(self, round_number: int) -> Callable[[int], object]:
        """One optimiser step on all clients. Plain SGD without torch's bookkeeping, which costs more than the step."""
        s = self.trainer.settings
        if s.optimizer == "sgd" and not s.momentum and not s.weight_decay:
            return lambda number: self.weights.detach().add_(
                self.gradient, alpha=-learning_rate(s, round_number, number)
            )
        optimizer = self.trainer.optimizer([("", self.weights)], round_number)
        self.weights.grad = self.gradient

        def step(number: int) -> None:
            if s.schedule_by == "step":
                set_rate(optimizer, learning_rate(s, round_number, number))
            optimizer.step()

        return step

    def fill(self, indices: Tensor, noise: Normals) -> None:
        """Sets `gradient` to each client's (clipped, noised) sum over its public normaliser.

        Args:
            indices: of each client's batch in `features`, shape (clients, rows).
            noise: read on from where the step before has stopped.
        """
        if indices.shape[1]:
            present = indices != len(self.features) - 1
            self.add_up(*self.passed(indices, present), present)
        else:
            self.gradient.zero_()
        clip = self.plan.max_grad_norm
        if clip is None:
            return  # the loss was divided
        # As in `client.noised`: the sum is in units of the clip norm, the noise is added in float64.
        drawn = torch.from_numpy(noise.draw(self.gradient.shape[1], self.plan.noise_multiplier))
        drawn = drawn.to(self.device).add_(self.gradient)
        torch.div(drawn, self.normalisers / clip, out=self.gradient)

    def passed(self, indices: Tensor, present: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Input of each Linear layer, (clients, rows, in), and gradient of the loss at its output, (..., out)."""
        rows = indices.flatten()
        features = self.features.index_select(0, rows).view(*indices.shape, *self.features.shape[1:])
        parameters, inputs, outputs = iter(self.parameters), list[Tensor](), list[Tensor]()
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                inputs.append(features.detach())
                weight = next(parameters).mT
                if layer.bias is None:
                    features = features @ weight
                else:
                    features = torch.baddbmm(next(parameters).unsqueeze(1), features, weight)
                if not outputs:
                    features.requires_grad_()  # no parameter here asks for a gradient; the outputs do
                outputs.append(features)
            else:
                features = layer(features)
        losses = record_losses(self.trainer.task, features.flatten(0, 1), self.targets.index_select(0, rows))
        share = present.to(losses.dtype)
        if self.plan.max_grad_norm is None:
            share = share / self.normalisers.to(losses.dtype)
        # Of a scalar: given a vector for `losses`, torch imports sympy first, which takes most of a second.
        return inputs, list(torch.autograd.grad(losses.dot(share.flatten()), outputs))

    def add_up(self, inputs: list[Tensor], gradients: list[Tensor], present: Tensor) -> None:
        """Writes each client's sum over its records, clipped in a private run, into `gradient`."""
        clip = self.plan.max_grad_norm
        if clip is not None:
            norms = self._norms(inputs, gradients)
            finite = norms.isfinite()
            if not finite.all():
                present = present & finite
                inputs = [torch.where(finite.unsqueeze(2), a, 0.0) for a in inputs]
                gradients = [torch.where(present.unsqueeze(2), g, 0.0) for g in gradients]
                norms = torch.where(finite, norms, 0.0)
            divisors = (norms + MARGIN).clamp_(min=clip).unsqueeze(2)
            gradients = [g.div_(divisors) for g in gradients]
        elif not gradients[-1].isfinite().all():
            # Replaced, not multiplied: what the row that stands in gives may be no number.
            gradients = [torch.where(present.unsqueeze(2), g, 0.0) for g in gradients]
        sums = iter(self.sums)
        for layer, a, g in zip(self.linear, inputs, gradients, strict=True):
            next(sums).copy_(g.mT @ a)
            if layer.bias is not None:
                torch.sum(g, 1, out=next(sums))

    def _norms(self, inputs: list[Tensor], gradients: list[Tensor]) -> Tensor:
        """Norm of each record's gradient, shape (clients, rows); a bound from above of it."""
        squares = [(_squares(a), _squares(g)) for a, g in zip(inputs, gradients, strict=True)]
        if not all((a < _LARGE).all() for a, _ in squares):  # false for NaN too
            squares = [
                (a.double().square().sum(2), g.double().square().sum(2))
                for a, g in zip(inputs, gradients, strict=True)
            ]
        total = torch.zeros(inputs[0].shape[:2], dtype=torch.float64, device=self.device)
        for layer, (a, g) in zip(self.linear, squares, strict=True):
            # What has vanished in the squares of g, in float32, is less than this; a is not long enough to raise it.
            total += (a + (layer.bias is not None)) * (g + _VANISHED)
        return total.to(gradients[0].dtype).sqrt_()


def _squares(x: Tensor) -> Tensor:
    """Squared norm of each last row, in float64; summed up in float32, which takes a quarter of the time."""
    squares: Tensor = torch.linalg.vector_norm(x, dim=2).double().square_()
    return squares


def unstackable(model: nn.Module) -> str:
    """Why the clients of this model are trained one after the other; empty if they need not be."""
    if not supports(model):
        return "the model is not a plain stack of Linear layers and element-wise activations"
    others = {type(layer) for layer in stack(model)} - {nn.Linear, *ELEMENTWISE}
    if others or any(isinstance(layer, nn.Dropout) for layer in stack(model)):
        return "a layer draws random numbers of its own, or changes the shape of a record"
    return ""


def obstacle_to_stacking(run: Run) -> str:
    """Why the clients of a run are trained one after the other; empty if they need not be."""
    if run.experiment.strategy.name in KEEPING:
        return "each site begins with what it has kept"
    if any(site.steps for site in run.experiment.federation.sites):
        return "the sites take different numbers of steps"
    if (precision := run.experiment.training.precision) != "float32":
        return f"layers in {precision}, which save time in models that do not stack"
    if run.experiment.task.kind in RANKING:
        return "a record is a list of items"
    if run.experiment.training.rate_factors:
        return "parts of the model have learning rates of their own"
    if run.trainer.augmentation.is_on:
        return "a step sees views of its records"
    return unstackable(run.trainer.model)


def executor_for(run: Run, num_clients: int) -> str:
    """ "stacked", "workers" or "serial", as the experiment says or the model allows; the reason is logged once.

    Where it is one of the first two, the run's trainer is of that kind from here on.

    Raises:
        ConfigError: the experiment demands an executor that is not possible for the model or the device.
    """
    wish, strategy = run.experiment.simulation.executor, run.experiment.strategy.name
    if strategy in KEEPING and wish in ("stacked", "workers"):
        raise ConfigError(
            f'not possible here: with strategy.name = "{strategy}" each site begins with what it has kept',
            key="simulation.executor",
        )
    if wish == "serial" or strategy in KEEPING:
        return "serial"
    if isinstance(run.trainer, StackedTrainer):
        return "stacked"
    if isinstance(run.trainer, WorkersTrainer):
        return "workers"
    reason = obstacle_to_stacking(run)
    if wish == "stacked" and reason:
        raise ConfigError(f"not possible here: {reason}", key="simulation.executor")
    if wish != "workers" and not reason:
        LOG.info("executor stacked: %d clients at once", num_clients)
        run.trainer = StackedTrainer.of(run.trainer)
        return "stacked"
    if obstacle := no_workers(run):
        if wish == "workers":
            raise ConfigError(f"not possible here: {obstacle}", key="simulation.executor")
        LOG.info("executor serial: %s; %s", reason, obstacle)
        return "serial"
    if wish == "auto":
        LOG.info("executor serial, and workers after %g s of training: %s", PATIENCE, reason)
    run.trainer = WorkersTrainer.of(run, 0.0 if wish == "workers" else PATIENCE)
    return "workers"


def chosen(run: Run, *, with_messages: bool) -> str:
    """How a run's cohorts were trained, and why, for the report."""
    if isinstance(run.trainer, StackedTrainer):
        how = "stacked: the model is a stack of layers, and all clients of a cohort are one matrix"
    elif isinstance(run.trainer, WorkersTrainer) and run.trainer.has_started:
        how = f"workers: {obstacle_to_stacking(run) or 'as the experiment says'}"
    elif run.experiment.simulation.executor == "serial":
        how = "serial, as the experiment says"
    else:
        how = f"serial: {obstacle_to_stacking(run)}"
    sent = "over messages" if with_messages else "without messages"
    return f"{how}; {sent}; gradients {run.trainer.engine}"


def train_ahead(cohort: Sequence[tuple[Message, Context]]) -> None:
    """Trains the clients that are about to be asked for an update; whoever cannot be is left to the `ClientApp`.

    The answer to each message still comes from there: guard, encoding, debit and refusal are its own.

    Raises:
        ConfigError: the experiment demands `executor = "stacked"` and the model does not stack.
    """
    asked = [
        (m, c) for m, c in cohort if "arrays" in m.content and m.metadata.message_type.startswith("train")
    ]
    clients = [client for message, context in asked if (client := _client(message, context))]
    if not clients or (number := _round(asked[0][0])) == STATISTICS_ROUND:
        return
    run = clients[0].run
    if executor_for(run, len(clients)) == "serial":
        return
    assert isinstance(run.trainer, StackedTrainer | WorkersTrainer)
    jobs = [client.job for client in clients]
    try:
        run.trainer.train_ahead(received_arrays(asked[0][0]), jobs, number, run.keys)
    except (
        Exception
    ) as error:  # a task may raise anything: the ClientApp meets the same, and answers with its reason
        LOG.warning("executor serial: training all clients at once failed (%s)", type(error).__name__)
        LOG.debug("where", exc_info=True)


def _client(message: Message, context: Context) -> Participant | None:
    try:
        client = ready(message, context)
        client.records("train")
    except Exception:  # the ClientApp meets the same one, and answers with its reason
        return None
    return client


def _round(message: Message) -> int:
    """The round of a training message, plain or of the protocol."""
    asked = fields(message)
    return SetupRequest.decode(body(message)).invitation.round if "body" in asked else ids(asked)[1]
