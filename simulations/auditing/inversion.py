"""A record, rebuilt from what its site sends: from the update itself, from the masked one, from the noised one.

One record is all that a site has, and it makes one step: the worst case, and the usual demonstration (Zhu, Liu, Han,
"Deep leakage from gradients", NeurIPS 2019). Where the first layer is linear and has biases no search is needed: the
gradient of row i of its weights is g_i x and that of bias i is g_i, so that their ratio is the record x itself (Phong
et al., "Privacy-preserving deep learning via additively homomorphic encryption", IEEE TIFS 2018). Other models are
searched through: features whose gradient points in the direction of the one seen (Geiping et al., "Inverting
gradients", NeurIPS 2020), for a target that is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.bookkeeping import BookKeeping, supports
from client.training import Gradients, PlainGradients, record_losses
from simulations.auditing.watched import attempt, divided
from tacit.config import Experiment
from tacit.encoding import encoder_of
from tacit.errors import ConfigError, RunFailed
from tacit.privacy.noise import Stream, SystemKeys
from tacit.privacy.plan import PrivacyPlan
from tacit.report.audit_record import Image, Inversion
from tacit.secagg.in_process import Attempt, Federation
from tacit.secagg.parameters import Rules
from tacit.secagg.ring import centre, units_per_one, unpack
from tacit.tasks import Records, Task, load_task
from tacit.tasks.weights import build_model, initial_arrays, load_arrays
from tacit.update import LocalUpdate

MEMBERS: Final = 3
STEPS: Final = 300
DEFAULT: Final = (
    3.0,
    1e-5,
)  # epsilon and delta of the noised update where the experiment has no privacy for records

Vector = NDArray[np.float64]


def audit_inversion(
    experiment: Experiment, out: Path, *, seed: int, on_part: Callable[[str], None] = lambda part: None
) -> Inversion:
    """Rebuilds one training record of the first site from what the site would send.

    Args:
        experiment: model, task, clip norms and privacy.
        out: folder of this attack.
        seed: which record.
        on_part: told the name of each part.

    Raises:
        ConfigError: a record's features are no numbers, or there are too many to draw.
    """
    folder = attempt(out)
    on_part("dividing the data among sites")
    prepared = divided(experiment, out)
    resolved, task = prepared.experiment, load_task(prepared.experiment)
    records = task.read(prepared.data_path(0), "train")
    row = int(np.random.default_rng([seed, 3]).integers(records.num_rows))
    record = Records(records.features[row : row + 1], records.targets[row : row + 1])
    if not record.features.dtype.is_floating_point or record.features.numel() > 65536:
        raise ConfigError("inversion needs records of at most 65536 real numbers", key="--method")
    on_part("rebuilding a record")
    victim = Victim(resolved, task, record)
    original = record.features[0].double().numpy().ravel()
    plain = victim.plain()
    seen = [
        ("what the server sees without protection", plain, "the update itself"),
        (
            "what it sees of the masked update",
            victim.masked(plain),
            "the words that leave the site, read as numbers",
        ),
        (victim.noised_title, victim.noised(), "the same update, clipped and noised at the site"),
    ]
    images = [Image(title="the record", values=tuple(original.tolist()), explanation="never leaves the site")]
    for title, gradient, explanation in seen:
        rebuilt = victim.rebuilt(gradient)
        likeness = similarity(original, rebuilt)
        values = tuple(rebuilt.tolist())
        images.append(Image(title=title, values=values, similarity=likeness, explanation=explanation))
    return Inversion(
        attack=victim.attack,
        shape=shape_of(tuple(record.features.shape[1:])),
        images=tuple(images),
        seconds=folder.seconds,
    )


class Victim:
    """A site that has one record and makes one step from the first model."""

    def __init__(self, experiment: Experiment, task: Task, record: Records) -> None:
        self.experiment, self.task, self.record = experiment, task, record
        self.arrays = initial_arrays(task, private=True, seed=experiment.seed)
        self.model = build_model(task, private=True)
        load_arrays(self.model, self.arrays)
        first = next((m for m in self.model.modules() if not list(m.children())), None)
        # The ratio is the record where the layer meets all of it at once, not its items or steps one by one.
        self.analytic = (
            isinstance(first, nn.Linear)
            and first.bias is not None
            and first.in_features == record.features.numel()
        )
        self.attack = "ratio of gradients of the first layer" if self.analytic else "search for the features"
        self._budgeted = experiment.privacy.record is not None
        plan = PrivacyPlan.of(experiment)
        if self._budgeted:
            self.epsilon, self._noise, self._clip = plan.epsilon, plan.noise_multiplier, plan.max_grad_norm
        else:
            one = PrivacyPlan.from_budget(*DEFAULT, sampling_rate=1.0, steps_per_round=1, rounds=1, reserve=0)
            self.epsilon, self._noise, self._clip = DEFAULT[0], one.noise_multiplier, 1.0

    @property
    def noised_title(self) -> str:
        """Of the third image."""
        whose = "the whole run" if self._budgeted else "this step, as an example"
        return f"what it sees with epsilon {self.epsilon:.3g} for {whose}"

    def plain(self) -> Vector:
        """The gradient of an unprotected step."""
        return self._gradient(PlainGradients(self.model, self.task))

    def noised(self) -> Vector:
        """The gradient of a step with record-level privacy, as the client makes it."""
        bounds = self._clip or 1.0, self._noise
        if supports(self.model):
            return self._gradient(BookKeeping(self.model, self.task, *bounds))
        from client.private_gradients import PrivateGradients

        return self._gradient(PrivateGradients(self.model, self.task, *bounds))

    def masked(self, gradient: Vector) -> Vector:
        """What leaves the site under the secure sum: this vector encoded, and masked with two other members."""
        experiment = self.experiment
        encoder = encoder_of(experiment, PrivacyPlan.of(experiment), self.task, self.arrays)
        layout = encoder.layout
        delta, random = layout.unflatten(-gradient), Stream(SystemKeys().key("rounding"))
        encoded = [
            encoder.encode(LocalUpdate(part, 1.0, dict.fromkeys(layout.metrics, 0.0)), random.uniform)
            for part in (delta, *(layout.unflatten(np.zeros(layout.model_size)) for _ in range(MEMBERS - 1)))
        ]
        run = Attempt(Federation(MEMBERS, Rules(1, 0, encoder.c_int)), encoded)
        for step in ("setup", "deal"):
            run.deliver(step, run.requests(step))
        request = run.requests("mask")[0]
        if run.clients[0].receive(request) is not None:
            raise RunFailed("a client could not open what the others have dealt")
        _, packed = run.clients[0].mask(request, encoded[0])
        bits = run.server.cohort.parameters.bits
        words = centre(unpack(packed, bits, layout.size), bits)[: layout.model_size]
        return np.asarray(-words / units_per_one(encoder.clip, encoder.c_int, layout.model_size))

    def rebuilt(self, gradient: Vector) -> Vector:
        """The features that an attacker takes this gradient to come from."""
        parts, start = [], 0
        for parameter in self.model.parameters():
            flat = gradient[start : start + parameter.numel()]
            parts.append(torch.from_numpy(flat.reshape(tuple(parameter.shape))).float())
            start += parameter.numel()
        return by_ratio(parts[0], parts[1]) if self.analytic else self._searched(parts)

    def _gradient(self, step: Gradients) -> Vector:
        self.model.train()
        step.fill(self.record, 1.0, Stream(SystemKeys().key("noise")))
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.model.parameters()]
        flat = torch.cat([g.detach().double().flatten() for g in grads]).numpy().copy()
        return np.asarray(flat)

    def _searched(self, seen: list[Tensor]) -> Vector:
        """Gradient descent on 1 - cosine of the gradients, from noise."""
        random = torch.Generator().manual_seed(0)
        guess = torch.randn(self.record.features.shape, generator=random).requires_grad_()
        optimizer = torch.optim.Adam([guess], lr=0.1)
        parameters = list(self.model.parameters())
        norm = math.sqrt(sum(float((g * g).sum()) for g in seen)) + 1e-12
        for _ in range(STEPS):
            loss = record_losses(self.task, self.model(guess), self.record.targets).sum()
            made = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
            pairs = [(a, b) for a, b in zip(made, seen, strict=True) if a is not None]
            dot = torch.stack([(a * b).sum() for a, b in pairs]).sum()
            own = torch.stack([(a * a).sum() for a, _ in pairs]).sum().sqrt()
            optimizer.zero_grad()
            (guess.grad,) = torch.autograd.grad(1 - dot / (own * norm + 1e-12), [guess])
            optimizer.step()
        return np.asarray(guess.detach()[0].double().numpy().ravel())


def by_ratio(weights: Tensor, biases: Tensor) -> Vector:
    """Rows of a weight gradient over the bias gradient: the least-squares fit of x to weights = biases x^T."""
    found = (weights.double() * biases.double()[:, None]).sum(dim=0) / (biases.double() ** 2).sum().clamp_min(
        1e-30
    )
    return np.asarray(found.numpy())


def similarity(original: Vector, rebuilt: Vector) -> float:
    """Correlation; 0 where one of them does not vary."""
    if not np.isfinite(rebuilt).all() or original.std() == 0 or rebuilt.std() == 0:
        return 0.0
    return float(np.corrcoef(original, rebuilt)[0, 1])


def shape_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns to draw a record in: its own two dimensions, a square, or rows of ten."""
    size = math.prod(shape)
    if len(shape) >= 2:
        return size // shape[-1], shape[-1]
    side = math.isqrt(size)
    if side * side == size:
        return side, side
    return math.ceil(size / 10), min(size, 10)
