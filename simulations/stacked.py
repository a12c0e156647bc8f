"""Local training of many clients at once: their parameters are the rows of one matrix.

What one client does in `client.training` is done here for a cohort in the same few calls into torch: batched
products for the layers, book-keeping for the norms of records (see `client.bookkeeping`), and one optimiser step on
the matrix, which is each client's own step because every optimiser on offer works coordinate by coordinate. Each
client draws its batches and its noise from its own keys, so the result is the serial one up to the order of
floating-point sums.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from flwr.app import Context, Message
from numpy.typing import NDArray
from torch import Tensor, nn

from client.app import body, fields, ready, received_arrays
from client.bookkeeping import ELEMENTWISE, MARGIN, stack, supports
from client.plain import ids
from client.training import LocalTrainer, record_losses
from tacit.encoding import STATISTICS_ROUND
from tacit.errors import ConfigError
from tacit.privacy.noise import Keys, Stream
from tacit.secagg.messages import SetupRequest
from tacit.tasks import Records
from tacit.tasks.weights import Arrays

if TYPE_CHECKING:
    from client.participant import Participant

LOG: Final = logging.getLogger(__name__)
_BYTES: Final = 1 << 27  # of one stack: parameters, gradients and activations


class Job(NamedTuple):
    """One client's part: the label of its site, its training records and the size that it declared."""

    site: str
    records: Records
    declared_rows: int


class StackedTrainer(LocalTrainer):
    """A `LocalTrainer` that may have trained a client ahead, together with its whole cohort.

    Guarantees:
        The result of a client is that of `LocalTrainer.train`, up to rounding in float32.
    """

    _ahead: dict[tuple[str, int], tuple[Arrays, dict[str, NDArray[np.float32]]]]

    @classmethod
    def of(cls, trainer: LocalTrainer) -> StackedTrainer:
        """The same trainer with the ability; it shares the model."""
        stacked = cls.__new__(cls)
        stacked.__dict__.update(trainer.__dict__, _ahead={})
        return stacked

    def train(
        self,
        arrays: Arrays,
        records: Records,
        *,
        declared_rows: int,
        round_number: int,
        keys: Keys,
        site: str,
    ) -> dict[str, NDArray[np.float32]]:
        """See `LocalTrainer.train`. What was trained ahead from the same arrays is handed over, once."""
        origin, delta = self._ahead.pop((site, round_number), ({}, {}))
        if origin.keys() == arrays.keys() and all(np.array_equal(origin[n], arrays[n]) for n in arrays):
            return delta
        return super().train(
            arrays, records, declared_rows=declared_rows, round_number=round_number, keys=keys, site=site
        )

    def train_ahead(self, arrays: Arrays, jobs: Sequence[Job], round_number: int, keys: Keys) -> None:
        """Trains these clients; what an earlier call trained and nobody asked for is forgotten."""
        self._ahead.clear()
        size = self._clients_at_once(jobs)
        for start, end in pairwise([*range(0, len(jobs), size), len(jobs)]):
            part = jobs[start:end]
            rows = _Stack(self, arrays, part, round_number, keys).train()
            for job, delta in zip(part, rows, strict=True):
                self._ahead[job.site, round_number] = arrays, delta

    def forget(self, site: str, round_number: int) -> None:
        """Lets go of what one client has trained ahead, if anything: it will train on something else."""
        self._ahead.pop((site, round_number), None)

    def _clients_at_once(self, jobs: Sequence[Job]) -> int:
        widths = sum(p.shape[0] for p in self.model.parameters())  # activations of a record, and a bit more
        batch = max((self.plan.sampling_rate * job.records.num_rows for job in jobs), default=0.0)
        inputs = max((job.records.features.shape[-1] for job in jobs), default=0)
        parameters = sum(p.numel() for p in self.model.parameters())
        return max(1, int(_BYTES / (4 * (6 * parameters + 4 * batch * (widths + inputs) + 1))))


class _Stack:
    """Some clients in one round: row i of `weights` (clients, parameters) is client i's model."""

    def __init__(
        self, trainer: StackedTrainer, arrays: Arrays, jobs: Sequence[Job], round_number: int, keys: Keys
    ) -> None:
        self.trainer, self.jobs, self.round, self.keys = trainer, jobs, round_number, keys
        self.plan, self.device = trainer.plan, trainer.device
        self.names = [name for name, _ in trainer.model.named_parameters()]
        self.shapes = [p.shape for p in trainer.model.parameters()]
        flat = np.concatenate([arrays[name].ravel() for name in self.names])
        self.start = torch.from_numpy(flat).to(self.device)
        self.weights = nn.Parameter(self.start.repeat(len(jobs), 1))
        self.gradient = torch.zeros_like(self.weights)
        self.parameters, self.sums = self._views(self.weights.detach()), self._views(self.gradient)
        # The last row stands in where a batch is shorter than the longest one.
        parts = [job.records for job in jobs]
        self.features, self.targets = (
            torch.cat([*column, column[0].new_zeros((1, *column[0].shape[1:]))]).to(self.device)
            for column in ([r.features for r in parts], [r.targets for r in parts])
        )
        self.offsets = np.cumsum([0, *(r.num_rows for r in parts)])
        rows = torch.tensor([[float(job.declared_rows)] for job in jobs], dtype=torch.float64)
        self.normalisers = (self.plan.sampling_rate * rows).to(self.device)

    def _views(self, matrix: Tensor) -> list[Tensor]:
        """Each parameter's place in the rows of a matrix, shape (clients, *shape)."""
        parts = torch.split(matrix, [shape.numel() for shape in self.shapes], dim=1)
        return [part.view(len(matrix), *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def train(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        """All steps of the round; then each client's trained minus received."""
        optimizer = self.trainer.optimizer([self.weights], self.round)
        for step in range(self.plan.steps_per_round):
            self.fill(*self.draw(step), step)
            if mu := self.trainer.proximal_mu:
                self.gradient.add_(self.weights.detach() - self.start, alpha=mu)
            self.weights.grad = self.gradient
            optimizer.step()
        changes = self._views(self.weights.detach() - self.start)
        columns = [change.cpu().numpy() for change in changes]
        for i in range(len(self.jobs)):
            yield {name: column[i].copy() for name, column in zip(self.names, columns, strict=True)}

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Each client's Poisson batch: indices into `features` and whether there is a record, (clients, rows)."""
        chosen = []
        for job, offset in zip(self.jobs, self.offsets, strict=False):
            stream = Stream(self.keys.key("poisson", job.site, self.round, step))
            drawn = stream.bernoulli(job.records.num_rows, self.plan.sampling_rate)
            chosen.append(np.flatnonzero(drawn) + offset)
        indices = np.full((len(chosen), max(map(len, chosen))), self.offsets[-1])
        for row, own in zip(indices, chosen, strict=True):
            row[: len(own)] = own
        return (
            torch.from_numpy(indices).to(self.device),
            torch.from_numpy(indices != self.offsets[-1]).to(self.device),
        )

    def fill(self, indices: Tensor, present: Tensor, step: int) -> None:
        """Sets `gradient` to each client's (clipped, noised) sum over its public normaliser."""
        if indices.shape[1]:
            self.add_up(*self.passed(indices), present)
        else:
            self.gradient.zero_()
        clip = self.plan.max_grad_norm
        if clip is None:
            return  # the loss was divided
        # As in `client.noised`: the sum is in units of the clip norm, the noise is added in float64.
        keys = (self.keys.key("noise", job.site, self.round, step) for job in self.jobs)
        size = self.gradient.shape[1]
        noise = np.stack([Stream(key).gaussian(size, self.plan.noise_multiplier) for key in keys])
        noised = torch.from_numpy(noise).to(self.device) + self.gradient
        self.gradient.copy_(noised / (self.normalisers / clip))

    def passed(self, indices: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Input of each Linear layer, (clients, rows, in), and gradient of the loss at its output, (..., out)."""
        features, parameters = self.features[indices], iter(self.parameters)
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        for layer in stack(self.trainer.model):
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
        targets = self.targets[indices].flatten(0, 1)
        losses = record_losses(self.trainer.task, features.flatten(0, 1), targets).view(indices.shape)
        if self.plan.max_grad_norm is None:
            losses = losses / self.normalisers.to(losses.dtype)
        return inputs, list(torch.autograd.grad(losses.sum(), outputs))

    def add_up(self, inputs: list[Tensor], gradients: list[Tensor], present: Tensor) -> None:
        """Writes each client's sum over its records, clipped in a private run, into `gradient`."""
        layers = [layer for layer in stack(self.trainer.model) if isinstance(layer, nn.Linear)]
        clip, divisors = self.plan.max_grad_norm, None
        if clip is not None:
            squared = torch.zeros(present.shape, dtype=torch.float64, device=self.device)
            for layer, a, g in zip(layers, inputs, gradients, strict=True):
                a, g = (torch.linalg.vector_norm(x, dim=2, dtype=torch.float64) for x in (a, g))
                squared += (a * a + (layer.bias is not None)) * g * g
            norms = squared.to(gradients[0].dtype).sqrt()
            finite = norms.isfinite()
            if not finite.all():
                present = present & finite
                inputs = [torch.where(finite.unsqueeze(2), a, 0.0) for a in inputs]
            divisors = (norms + MARGIN).clamp(min=clip).unsqueeze(2)
        sums = iter(self.sums)
        for layer, a, g in zip(layers, inputs, gradients, strict=True):
            # Replaced, not multiplied: what the row that stands in gives may be no number.
            g = torch.where(present.unsqueeze(2), g if divisors is None else g / divisors, 0.0)
            next(sums).copy_(g.mT @ a)
            if layer.bias is not None:
                next(sums).copy_(g.sum(1))


def unstackable(model: nn.Module) -> str:
    """Why the clients of this model are trained one after the other; empty if they need not be."""
    if not supports(model):
        return "the model is not a plain stack of Linear layers and element-wise activations"
    others = {type(layer) for layer in stack(model)} - {nn.Linear, *ELEMENTWISE}
    if others or any(isinstance(layer, nn.Dropout) for layer in stack(model)):
        return "a layer draws random numbers of its own, or changes the shape of a record"
    return ""


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
    if reason := unstackable(run.trainer.model):
        if run.experiment.simulation.executor == "stacked":
            raise ConfigError(f"not possible here: {reason}", key="simulation.executor")
        LOG.debug("executor serial: %s", reason)
        return
    if not isinstance(run.trainer, StackedTrainer):
        LOG.info("executor stacked: %d clients at once", len(clients))
        run.trainer = StackedTrainer.of(run.trainer)
    jobs = [Job(c.site.label, c.records("train"), c.declared_rows) for c in clients]
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
