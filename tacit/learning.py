"""`[task]` and `[training]`: what is trained, from what it begins, and by which steps."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tacit.augmentation import Augment
from tacit.data.schema import Count, Fraction, Frozen, Positive
from tacit.errors import did_you_mean

TEXT = ("text_classification",)
CLASSES = ("tabular", "array_classification", *TEXT)
NUMBERS = ("array_regression",)
ANOMALY = ("tabular_anomaly", "array_anomaly")
LABELS = ("array_multilabel",)
RANKING = ("array_ranking",)
SYNTHESIS = ("tabular_synthesis",)
BUILT_IN = (*CLASSES, *NUMBERS, *ANOMALY, *LABELS, *RANKING, *SYNTHESIS)  # kinds of task that are Tacit's own
LOSSES = {
    "cross_entropy": CLASSES,
    "focal": CLASSES,
    "squared": NUMBERS,
    "absolute": NUMBERS,
    "huber": NUMBERS,
}

Activation = Literal["relu", "leaky_relu", "elu", "selu", "gelu", "silu", "tanh", "sigmoid", "softplus"]

_LAYERED, _CONVOLVED = ("hidden", "activation", "dropout"), ("channels", "activation", "dropout")
# The keys of each model beside `name`: what its size and shape depend on, and nothing else does.
MODEL_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "mlp": _LAYERED,
    "logistic": (),
    "cnn": _CONVOLVED,
    "cnn1d": _CONVOLVED,
    "resnet": _CONVOLVED,
    **dict.fromkeys(("rnn", "gru", "lstm"), ("hidden", "dropout")),
    "transformer": (*_LAYERED, "layers", "heads"),
    "autoencoder": _LAYERED,
    "vae": _LAYERED,
    "embedding": _LAYERED,
    "gan": (*_LAYERED, "latent"),
}

LAST_ALONE: Final = ("rnn", "gru", "lstm", "transformer")  # of `hidden` they have the last width alone


class Model(Frozen):
    """`[task.model]`: a built-in model and its size. Ignored by a task of your own.

    Attributes:
        name: see docs/models.md.
        hidden: widths of an mlp's layers, and of an autoencoder's or vae's from the record down to the code; the last
            one is the width of a transformer's steps and of an rnn's, gru's or lstm's state. Of an embedding the first
            one is the width of a token. Of a gan those of the discriminator, and backwards of the generator.
        channels: of a cnn's or cnn1d's layers, and of a resnet's blocks; two or more, because a channel that is
            normalised by itself says nothing where it is a single number.
        layers: blocks of a transformer.
        heads: attentions side by side in each of them.
        dropout: chance of each number between layers to be left out in training; of a gan, in its discriminator.
        latent: random numbers that a gan makes a row of.
    """

    name: Literal[
        "mlp", "logistic", "cnn", "cnn1d", "resnet", "rnn", "gru", "lstm", "transformer", "autoencoder", "vae",
        "embedding", "gan",
    ] = "mlp"  # fmt: skip
    hidden: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] = (16,)
    channels: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(strict=False, min_length=1)] = (8, 16)
    activation: Activation = "relu"
    layers: Annotated[int, Field(ge=1, le=100)] = 1
    heads: Count = 2
    dropout: Fraction = 0.0
    latent: Count = 16

    @field_validator("*")
    @classmethod
    def _of_its_model(cls, value: Any, info: ValidationInfo) -> Any:
        """A key at its default passes: an experiment that is written out has them all."""
        key, name = str(info.field_name), info.data.get("name", "")
        if name and key not in MODEL_KEYS[name] and value != cls.model_fields[key].default:
            known = ", ".join(MODEL_KEYS[name]) or "none"
            raise ValueError(
                f'is no key of name = "{name}", which has {known}: leave it out (--set task.model.{key}=none)'
            )
        return value

    @model_validator(mode="after")
    def _possible(self) -> Model:
        if self.name == "transformer" and self.hidden[-1] % self.heads:
            raise ValueError(
                f"heads = {self.heads} must divide the width, the last of hidden: {self.hidden[-1]}"
            )
        return self


class Start(Frozen):
    """`[task.start]`: weights to begin from, which of them stay as they are, and adapters beside these.

    Names are those of the model's arrays, patterns are those of a shell: "0.*", "blocks.*.inner.*".

    Attributes:
        file: .safetensors or .npz, at the same path wherever the model is built; "" = weights are drawn.
        sha256: of the file, in hexadecimal: whoever has another one refuses.
        head: patterns of arrays that are drawn anew and trained, whatever the file has and `freeze` says.
        freeze: patterns of arrays that stay as in the file: they are not trained and do not travel.
        adapt: patterns of Linear layers that stay as in the file, with a low-rank adapter beside each.
        rank: of the adapters.
    """

    file: str = ""
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    head: Annotated[tuple[str, ...], Field(strict=False)] = ()
    freeze: Annotated[tuple[str, ...], Field(strict=False)] = ()
    adapt: Annotated[tuple[str, ...], Field(strict=False)] = ()
    rank: Count = 4

    @model_validator(mode="after")
    def _alike_everywhere(self) -> Start:
        if bool(self.file) != bool(self.sha256):
            raise ValueError("file and sha256 belong together: sha256sum FILE prints it")
        for name, patterns in (("head", self.head), ("freeze", self.freeze), ("adapt", self.adapt)):
            if patterns and not self.file:
                raise ValueError(
                    f"{name} needs file: drawn weights that stay as they are would differ by site"
                )
        return self


class Task(Frozen):
    """`[task]`: what is trained.

    Attributes:
        kind: "tabular" (classes of table rows), "array_classification", "array_multilabel", "array_regression",
            "array_ranking", "tabular_anomaly", "array_anomaly", "text_classification", "tabular_synthesis" (a generator
            of rows), or "module:object" of a task of your own.
        loss: by name; "auto" = cross_entropy for classes, squared for numbers, what a task of your own has.
        class_weights: how much a record of each class counts in the loss, in the order of the classes; public.
        label_smoothing: share of the target of cross_entropy that goes to all classes alike.
        ndcg_at: how many places of a ranking the metric `ndcg` looks at.
        class_shares: of made-up rows, in the order of the classes; public. All alike, if not given.
        generator_every: steps of a discriminator to each one of its generator.
        augment: the views of each record that a step sees in its place.
        options: passed to your own task as keyword arguments.
    """

    kind: str = "tabular"
    loss: Literal["auto", "cross_entropy", "focal", "squared", "absolute", "huber"] = "auto"
    class_weights: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    label_smoothing: Fraction = 0.0
    ndcg_at: Count = 10
    class_shares: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    generator_every: Count = 1
    model: Model = Model()
    start: Start = Start()
    augment: Augment = Augment()
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> Task:
        module, _, name = self.kind.partition(":")
        if self.is_own and not (module and name):
            raise ValueError(
                f'kind must be {", ".join(BUILT_IN)} or "module:object", not {self.kind!r}'
                f"{did_you_mean(self.kind, BUILT_IN)}"
            )
        if self.loss != "auto" and self.kind not in LOSSES[self.loss]:
            raise ValueError(f'loss = "{self.loss}" is for {", ".join(LOSSES[self.loss])}, not {self.kind!r}')
        for name, value in (("class_weights", self.class_weights), ("label_smoothing", self.label_smoothing)):
            if value and self.kind not in CLASSES:
                raise ValueError(f"{name} is for {', '.join(CLASSES)}, not {self.kind!r}")
        if self.ndcg_at != Task.model_fields["ndcg_at"].default and self.kind not in RANKING:
            raise ValueError(f"ndcg_at is for {', '.join(RANKING)}, not {self.kind!r}")
        if self.kind not in SYNTHESIS:
            for name, is_set in (
                ("class_shares", self.class_shares),
                ("generator_every", self.generator_every > 1),
            ):
                if is_set:
                    raise ValueError(f"{name} is for {', '.join(SYNTHESIS)}, not {self.kind!r}")
        if self.is_own and self.start.file:
            raise ValueError("start is for Tacit's own models: a task of your own begins as its model() says")
        if self.label_smoothing and self.loss == "focal":
            raise ValueError('label_smoothing is for loss = "cross_entropy"')
        self._check_augment()
        return self

    def _check_augment(self) -> None:
        """Which records it fits, the experiment checks: it knows their shape."""
        applied = self.augment.strengths
        if self.is_own and applied:
            raise ValueError(
                f"augment.{min(applied)} is for Tacit's own kinds: a task of your own makes its views in "
                "augment(features, generator)"
            )
        if self.kind in (*TEXT, *RANKING, *SYNTHESIS) and applied:
            raise ValueError(f'augment.{min(applied)}: there is none for kind = "{self.kind}"')
        if self.augment.views > 1 and not applied and not self.is_own:
            raise ValueError(
                f"augment.views = {self.augment.views} would all be alike: say what they differ in, noise = 0.1, say"
            )

    @property
    def is_own(self) -> bool:
        """Whether `kind` names a task of the user's own."""
        return self.kind not in BUILT_IN

    @property
    def is_tabular(self) -> bool:
        """Whether its records are rows of a table, by their columns or their text."""
        return self.kind in ("tabular", "tabular_anomaly", *TEXT, *SYNTHESIS)


class Training(Frozen):
    """`[training]`: rounds and the local steps of each. Public constants, equal at all sites.

    Attributes:
        rounds: number of rounds.
        clients_per_round: cohort size; 0 = all.
        sampling_rate: q; each record is in a step's batch with this probability, drawn anew each step.
        local_steps: optimiser steps per round.
        optimizer: of torch.optim; a fresh one in each round, so that nothing of it outlives the round.
        max_batch: most records that pass the model at once; 0 = the whole batch. It bounds memory, and no sum
            depends on it.
        precision: of the layers in training; gradients per record, their clipping, sums and noise are in float32
            always, and so is evaluation.
        rate_factors: by pattern of a parameter's name, what its learning rate is multiplied by (discriminative
            rates; Howard and Ruder 2018, section 3.2); the first pattern that meets it counts, and 1 without one.
        l1: pull of every weight towards 0, added to the gradient times the weight's sign.
        schedule: learning rate over rounds: constant; cosine (to 0 after the last round); step
            (multiplied by `gamma` every `step_rounds` rounds); exponential (the same, little by little).
        schedule_by: whether it moves from round to round, or within a round from step to step too.
        warmup_rounds: over which it rises to what the schedule says.
    """

    rounds: Annotated[int, Field(ge=1, le=100_000)] = 20
    clients_per_round: Annotated[int, Field(ge=0)] = 0
    sampling_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    local_steps: Annotated[int, Field(ge=1, le=100_000)] = 5
    max_batch: Annotated[int, Field(ge=0)] = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop", "adagrad"] = "sgd"
    learning_rate: Positive = 0.1
    rate_factors: dict[str, Positive] = Field(default_factory=dict)
    momentum: Fraction = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    l1: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "cosine", "step", "exponential"] = "constant"
    schedule_by: Literal["round", "step"] = "round"
    warmup_rounds: Annotated[int, Field(ge=0)] = 0
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.5
    step_rounds: Count = 10

    @field_validator("precision", mode="before")
    @classmethod
    def _without_scale(cls, value: Any) -> Any:
        if value in ("float16", "fp16", "half"):
            raise ValueError(
                f'"{value}" needs a loss scaled by how large the records\' gradients are (GradScaler), and no noise '
                'protects that scale: take "bfloat16", which needs none'
            )
        return value

    @model_validator(mode="after")
    def _meant(self) -> Training:
        if self.warmup_rounds > self.rounds:
            raise ValueError(f"warmup_rounds = {self.warmup_rounds} is above rounds = {self.rounds}")
        return self
