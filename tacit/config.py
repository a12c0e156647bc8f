"""One TOML file per experiment, validated into one frozen object from which everything else is derived.

Fields that change privacy stand in `Training` (`max_batch` apart), `RecordPrivacy`, `ClientPrivacy`,
`SecureAggregation` and `Evaluation`; fields that change only speed or comfort stand in `Simulation` (its fault list
apart) and `Checkpoints`.

Longer than 400 lines because every key that an experiment may have is found here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import Field, ValidationError, model_validator

from tacit.algorithms import KEEPING, PERSONAL, SINGLE_UPDATES, Strategy
from tacit.data.array_schema import ArraySchema
from tacit.data.schema import Frozen, Schema
from tacit.errors import ConfigError
from tacit.population import Labels
from tacit.shifts import SHIFT_KINDS, AnyShift

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Kind = TypeVar("Kind", bound=Frozen)
KINDS = (
    "numeric",
    "categorical",
    *SHIFT_KINDS,
)  # what pydantic puts into the place of a problem, and no key is

CLASSES = ("tabular", "array_classification")
NUMBERS = ("array_regression",)
ANOMALY = ("tabular_anomaly", "array_anomaly")
LABELS = ("array_multilabel",)
BUILT_IN = (*CLASSES, *NUMBERS, *ANOMALY, *LABELS)  # kinds of task that are Tacit's own
LOSSES = {
    "cross_entropy": CLASSES,
    "focal": CLASSES,
    "squared": NUMBERS,
    "absolute": NUMBERS,
    "huber": NUMBERS,
}

Activation = Literal["relu", "leaky_relu", "elu", "selu", "gelu", "silu", "tanh", "sigmoid", "softplus"]


class Model(Frozen):
    """`[task.model]`: a built-in model and its size. Ignored by a task of your own.

    Attributes:
        name: see docs/models.md.
        hidden: widths of an mlp's layers, and of an autoencoder's or vae's from the record down to the code; the last
            one is the width of a transformer's steps and of an rnn's, gru's or lstm's state.
        channels: of a cnn's or cnn1d's layers, and of a resnet's blocks; two or more, because a channel that is
            normalised by itself says nothing where it is a single number.
        layers: blocks of a transformer.
        heads: attentions side by side in each of them.
        dropout: chance of each number between layers to be left out in training.
    """

    name: Literal[
        "mlp", "logistic", "cnn", "cnn1d", "resnet", "rnn", "gru", "lstm", "transformer", "autoencoder", "vae"
    ] = "mlp"
    hidden: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] = (16,)
    channels: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(strict=False, min_length=1)] = (8, 16)
    activation: Activation = "relu"
    layers: Annotated[int, Field(ge=1, le=100)] = 1
    heads: Count = 2
    dropout: Fraction = 0.0

    @model_validator(mode="after")
    def _possible(self) -> Model:
        if self.name == "transformer" and self.hidden[-1] % self.heads:
            raise ValueError(
                f"heads = {self.heads} must divide the width, the last of hidden: {self.hidden[-1]}"
            )
        if self.name == "logistic" and self.dropout:
            raise ValueError('dropout leaves out what is between layers, and "logistic" has a single one')
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
            "tabular_anomaly", "array_anomaly", or "module:object" of a task of your own.
        loss: by name; "auto" = cross_entropy for classes, squared for numbers, what a task of your own has.
        class_weights: how much a record of each class counts in the loss, in the order of the classes; public.
        label_smoothing: share of the target of cross_entropy that goes to all classes alike.
        options: passed to your own task as keyword arguments.
    """

    kind: str = "tabular"
    loss: Literal["auto", "cross_entropy", "focal", "squared", "absolute", "huber"] = "auto"
    class_weights: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    label_smoothing: Fraction = 0.0
    model: Model = Model()
    start: Start = Start()
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> Task:
        module, _, name = self.kind.partition(":")
        if self.is_own and not (module and name):
            raise ValueError(f'kind must be {", ".join(BUILT_IN)} or "module:object", not {self.kind!r}')
        if self.loss != "auto" and self.kind not in LOSSES[self.loss]:
            raise ValueError(f'loss = "{self.loss}" is for {", ".join(LOSSES[self.loss])}, not {self.kind!r}')
        for name, value in (("class_weights", self.class_weights), ("label_smoothing", self.label_smoothing)):
            if value and self.kind not in CLASSES:
                raise ValueError(f"{name} is for {', '.join(CLASSES)}, not {self.kind!r}")
        if self.is_own and self.start.file:
            raise ValueError("start is for Tacit's own models: a task of your own begins as its model() says")
        if self.label_smoothing and self.loss == "focal":
            raise ValueError('label_smoothing is for loss = "cross_entropy"')
        return self

    @property
    def is_own(self) -> bool:
        """Whether `kind` names a task of the user's own."""
        return self.kind not in BUILT_IN

    @property
    def is_tabular(self) -> bool:
        """Whether its records are rows of a table, by their columns."""
        return self.kind in ("tabular", "tabular_anomaly")


class Data(Frozen):
    """`[data]`: where the rows come from and which of them are held out.

    Attributes:
        source: a built-in data set; "csv", "parquet" or "npz" with `path`; "generated" with `generator`.
        path: the file, for "csv", "parquet" and "npz".
        generator: name of a generated scenario, whose truth is known (tacit scenarios list).
        rows: how many a generator makes; 0 = as many as its story has.
        dir: folder with a built-in source's files; empty = the user's cache, filled by a download.
        split_seed: seed of the train/test split of each site (simulation).
        test_fraction: share of each site's rows held out; they are no part of the privacy statement.
        split_by: column with the time: each site's latest rows are held out; empty = drawn (simulation).
        schema: the columns; empty = the source's own, or inferred from the file (not in a private run).
        arrays: shape and scaling of records that are arrays; empty = the source's own.
    """

    source: Literal[
        "breast_cancer",
        "heart_disease",
        "credit_default",
        "digits",
        "csv",
        "parquet",
        "npz",
        "medmnist",
        "generated",
        "task",
    ] = "breast_cancer"
    path: str = ""
    generator: str = ""
    rows: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    dir: str = ""
    split_seed: int = 42
    test_fraction: Fraction = 0.25
    split_by: str = ""
    columns: Annotated[Schema | None, Field(alias="schema")] = None
    arrays: ArraySchema | None = None

    @model_validator(mode="after")
    def _path(self) -> Data:
        if self.source in ("csv", "parquet", "npz") and not self.path:
            raise ValueError(f'source = "{self.source}" needs path')
        if (self.source == "generated") != bool(self.generator):
            raise ValueError('source = "generated" and generator belong together')
        return self

    @property
    def file(self) -> str:
        """What a site's file is called."""
        return "data.csv" if self.arrays is None else "data.npz"


class Partition(Frozen):
    """`[partition]` (simulation): how one table becomes sites. Seeded by the experiment's `seed`.

    Attributes:
        kind: see docs/partitions.md.
        alpha: of "dirichlet", "quantity" and "label_quantity": smaller is more unequal.
        size_alpha: of "label_quantity": the same for the sizes.
        min_rows: no site has fewer.
        shift: strength of "feature_shift".
        rows: of "virtual": rows of each client.
        column: of "natural", "grouped" and "continuous".
        classes_per_client: of "pathological" and "distribution".
        shards_per_client: of "shard".
        sizes: of "sizes" and, instead of drawn ones, of "label_quantity": rows of each site.
        strictness: of "continuous": 0 = at random, 1 = in the order of the column.
        group_size: of "grouped": how many values of the column make a site.
        sigma: of "distribution": of the log-normal law of the sizes.
        shifts: what is changed at which sites besides, in this order.
        steps: local steps that the sites take in a round, dealt out in turn; empty = all take `training.local_steps`.
    """

    kind: Literal[
        "iid", "dirichlet", "quantity", "feature_shift", "natural",
        "label_quantity", "pathological", "shard", "sizes", "linear", "square", "exponential",
        "distribution", "continuous", "grouped", "virtual",
    ] = "iid"  # fmt: skip
    num_clients: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    alpha: Positive = 0.5
    size_alpha: Positive = 1.0
    min_rows: Annotated[int, Field(ge=1)] = 10
    shift: Annotated[float, Field(ge=0)] = 0.5
    rows: Count = 32
    column: str = ""
    classes_per_client: Count = 1
    shards_per_client: Count = 2
    sizes: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    strictness: Annotated[float, Field(ge=0, le=1)] = 0.7
    group_size: Count = 2
    sigma: Annotated[float, Field(gt=0, le=10)] = 2.0
    shifts: Annotated[tuple[AnyShift, ...], Field(strict=False)] = ()
    steps: Annotated[tuple[Count, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _complete(self) -> Partition:
        needs = {"natural": "names the site", "grouped": "names what is grouped", "continuous": "rows go by"}
        if self.kind in needs and not self.column:
            raise ValueError(f'kind = "{self.kind}" needs column, the column that {needs[self.kind]}')
        if self.kind == "sizes" and not self.sizes:
            raise ValueError('kind = "sizes" needs sizes, the rows of each site')
        if self.kind == "virtual" and self.shifts:
            raise ValueError(
                'shifts change what sites have; the clients of kind = "virtual" share one pool of rows'
            )
        if self.kind == "virtual" and self.steps:
            raise ValueError('the clients of kind = "virtual" are alike: all take training.local_steps')
        if self.sizes and self.kind in ("sizes", "label_quantity") and len(self.sizes) != self.num_clients:
            raise ValueError(f"sizes names {len(self.sizes)} sites, num_clients is {self.num_clients}")
        return self

    @property
    def is_counted(self) -> bool:
        """Whether `num_clients` is the number of sites, and not the data say it."""
        return self.kind not in ("natural", "grouped")


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
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop", "adagrad"] = "sgd"
    learning_rate: Positive = 0.1
    momentum: Fraction = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    l1: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "cosine", "step", "exponential"] = "constant"
    schedule_by: Literal["round", "step"] = "round"
    warmup_rounds: Annotated[int, Field(ge=0)] = 0
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.5
    step_rounds: Count = 10

    @model_validator(mode="after")
    def _meant(self) -> Training:
        if self.warmup_rounds > self.rounds:
            raise ValueError(f"warmup_rounds = {self.warmup_rounds} is above rounds = {self.rounds}")
        return self


class Budget(Frozen):
    """Epsilon and delta of one unit of privacy, and the share of repeats that the plan is calibrated for.

    Attributes:
        epsilon: upper bound for the whole run.
        delta: below one over the declared population.
        reserve: extra debits per round for repeated attempts, as a share of `rounds`.
    """

    epsilon: Annotated[float, Field(gt=0, le=1e6)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    reserve: Annotated[float, Field(ge=0, le=10)] = 0.1


class RecordPrivacy(Budget):
    """`[privacy.record]`: one row of one site; noise at the site, in every step.

    Attributes:
        max_grad_norm: per-record clip norm of the gradient.
        metrics_share: share of the budget that pays for evaluation metrics; 0 = none are sent.
        statistics_share: share that pays for `scaling = "federated"`.
    """

    max_grad_norm: Positive = 1.0
    metrics_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    statistics_share: Annotated[float, Field(ge=0, le=0.5)] = 0.05


class ClientPrivacy(Budget):
    """`[privacy.client]`: everything one client has; noise inside the secure sum, or at a trusted server.

    Attributes:
        noise: "distributed" = each client adds its share inside the secure sum; "central" = the server adds it to
            the sum, and is trusted with what it sees before.
        model_share: share of the clip norm that the model has; metrics and quantile bit share the rest (squares
            add up to 1).
        target_quantile: the clip norm adapts until this share of the updates is below it; 0 = it stays
            `secure_aggregation.update_clip`, where it begins in any case.
        clip_learning_rate: how fast it adapts.
        clip_range: smallest and largest clip norm that it may become.
    """

    noise: Literal["distributed", "central"] = "distributed"
    model_share: Annotated[float, Field(gt=0, lt=1)] = 0.99
    target_quantile: Fraction = 0.0
    clip_learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    clip_range: Annotated[tuple[Positive, Positive], Field(strict=False)] = (1e-3, 100.0)

    @model_validator(mode="after")
    def _ordered(self) -> ClientPrivacy:
        if self.clip_range[0] > self.clip_range[1]:
            raise ValueError("clip_range: the smallest comes first")
        return self


class Privacy(Frozen):
    """`[privacy]`: neither table = not private, epsilon infinity, and the same path."""

    record: RecordPrivacy | None = None
    client: ClientPrivacy | None = None


class SecureAggregation(Frozen):
    """`[secure_aggregation]`: the server receives masked updates and learns their sum.

    Attributes:
        engine: "protocol" = the cryptographic protocol; "ideal" = the same encoding and integer sum without
            cryptography (simulation only).
        protocol: "tacit-1" = designed to hold against a server that lies (docs/protocol.md).
        max_corrupt: c, members that may collude with the server.
        max_dropouts: D, members of a cohort that may vanish in a round.
        update_clip: Euclidean norm that one client's update is cut at.
        precision_bits: C_int = 2**precision_bits integer units stand for `update_clip`.
    """

    enabled: bool = True
    engine: Literal["protocol", "ideal"] = "protocol"
    protocol: Literal["tacit-1"] = "tacit-1"
    max_corrupt: Count = 1
    max_dropouts: Annotated[int, Field(ge=0)] = 0
    update_clip: Positive = 10.0
    precision_bits: Annotated[int, Field(ge=8, le=24)] = 16
    deadline_seconds: Positive = 600.0

    def check_cohort(self, n: int) -> None:
        """Raises `ValueError` unless n clients leave a threshold, two honest vectors, and a sum of 32 bits."""
        c, d = self.max_corrupt, self.max_dropouts
        threshold = (n + c) // 2 + 1
        if threshold > n:
            raise ValueError(f"max_corrupt = {c}: threshold {threshold} is above the cohort of {n}")
        if n - d < threshold:
            raise ValueError(
                f"max_dropouts = {d}: only {n - d} of {n} clients are sure to remain, the threshold is {threshold}"
            )
        if n - d - c < 2:
            raise ValueError(
                f"max_corrupt + max_dropouts = {c + d} leaves fewer than 2 honest of {n} clients"
            )
        if n * 2**self.precision_bits >= 2**31:
            most = (2**31 // n - 1).bit_length() - 1
            raise ValueError(
                f"precision_bits = {self.precision_bits}: the sum of {n} clients does not fit into 32 bits"
                + (f"; {most} is the most" if most >= 8 else "")
            )


class Evaluation(Frozen):
    """`[evaluation]`: metrics of the global model that the server learns, and what it does with them.

    Attributes:
        metrics: send metric sums (exact without privacy; noised and paid from `metrics_share` with it).
        curves: with them counts of outcomes: confusion matrix, curves, calibration (classes only).
        bins: of a probability in those counts; even.
        groups: categorical column by whose values the counts are kept apart; empty = by none.
        smallest_group: a group of fewer records is not shown.
        explain: with the metrics how much the model goes by each column, by this method (`tacit.tasks.importance`).
        patience: stop after so many rounds without a better `monitor`; 0 = run all rounds.
        monitor: metric that early stopping and the best-checkpoint choice read.
    """

    metrics: bool = False
    curves: bool = False
    bins: Annotated[int, Field(ge=2, le=200, multiple_of=2)] = 20
    groups: str = ""
    smallest_group: Annotated[int, Field(ge=1)] = 20
    explain: Literal["", "saliency", "integrated_gradients", "occlusion", "shap"] = ""
    patience: Annotated[int, Field(ge=0)] = 0
    monitor: str = "accuracy"


class Checkpoints(Frozen):
    """`[checkpoints]`: what the server keeps on disk.

    Attributes:
        keep: newest checkpoints kept; 0 = all (simulation draws its learning curves from them).
    """

    keep: Annotated[int, Field(ge=0)] = 3


class Ray(Frozen):
    """`[simulation.ray]`: what `--engine ray` gives each client, and where.

    Attributes:
        cpus_per_client: cores of one client, whole ones: Flower's runtime takes no parts of a core.
        gpus_per_client: GPUs of one client; 0.25 lets four clients share one.
        address: of a running cluster, which must see the same paths, as in `RAY_ADDRESS`; empty = that variable,
            else a Ray of this run's own.
    """

    cpus_per_client: Count = 1
    gpus_per_client: Annotated[float, Field(ge=0)] = 0.0
    address: str = ""


class Simulation(Frozen):
    """`[simulation]`: how it is simulated. Without faults this changes speed and the report, never the result.

    Attributes:
        baselines: also train the pooled and the local-only models that federation is compared with.
        tune_baselines: choose each one's learning rate, on a quarter of its own training records held back.
        executor: how the local engine trains a cohort: all clients at once, by worker processes, or one after the
            other through the `ClientApp`; "auto" stacks them where the model allows it, and else starts workers
            once training takes long.
        faults: a file of failures and lies to play (docs/faults.md); empty = none.
        durable_ledgers: fsync the simulated sites' ledgers, and what the server keeps of each round, too.
    """

    baselines: bool = True
    tune_baselines: bool = True
    faults: str = ""
    executor: Literal["auto", "stacked", "workers", "serial"] = "auto"
    durable_ledgers: bool = False
    ray: Ray = Ray()


class Site(Frozen):
    """One member of the federation, as declared: all of it is public.

    Attributes:
        rows: to train on.
        joins: the first round that it is invited to; None = 1.
        leaves: the first round that it is not invited to any more; None = never.
        steps: local steps that it takes in a round, at most `training.local_steps`; None = as many.
    """

    label: Annotated[str, Field(min_length=1)]
    rows: Count
    joins: Count | None = None
    leaves: Count | None = None
    steps: Count | None = None

    @model_validator(mode="after")
    def _present(self) -> Site:
        if self.leaves is not None and self.leaves <= (self.joins or 1):
            raise ValueError(f"{self.label!r} leaves in round {self.leaves}, and joins in {self.joins or 1}")
        return self

    def takes_part(self, round_number: int) -> bool:
        """Whether it may be invited to this round."""
        return (self.joins or 1) <= round_number and (self.leaves is None or round_number < self.leaves)


class Population(Frozen):
    """`[federation.population]` (simulation): so many clients, each of the same declared size."""

    size: Count
    rows: Count


class Federation(Frozen):
    """`[federation]`: the members and what they declared. A simulation fills this in from its partition."""

    sites: Annotated[tuple[Site, ...], Field(strict=False)] = ()
    population: Population | None = None

    @property
    def labels(self) -> Sequence[str]:
        """Of the members, in order."""
        return Labels(self.population.size) if self.population else [site.label for site in self.sites]

    @property
    def sizes(self) -> Sequence[int]:
        """Declared sizes, without repetition where all are equal."""
        return [self.population.rows] if self.population else [site.rows for site in self.sites]

    @property
    def num_members(self) -> int:
        """How many there are."""
        return self.population.size if self.population else len(self.sites)

    @model_validator(mode="after")
    def _distinct(self) -> Federation:
        labels = [site.label for site in self.sites]
        if len(set(labels)) != len(labels):
            raise ValueError("two sites have the same label")
        if self.sites and self.population:
            raise ValueError("sites and a population exclude each other")
        return self

    def present(self, round_number: int) -> Sequence[str]:
        """Labels of the members that may be invited to a round, in roster order."""
        if self.population:
            return self.labels
        return [site.label for site in self.sites if site.takes_part(round_number)]

    def fewest_present(self, rounds: int) -> int:
        """How many members there are in the round that has fewest of them."""
        if self.population:
            return self.population.size
        turns = {1, *(t for site in self.sites for t in (site.joins, site.leaves) if t and t <= rounds)}
        return min(len(self.present(turn)) for turn in turns)


class Experiment(Frozen):
    """A whole experiment. `seed` fixes data, split, initial weights, cohorts and rounding; never noise."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,79}$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 7
    device: Literal["auto", "cpu", "cuda"] = "auto"
    insecure_seeded_noise: bool = False
    task: Task = Task()
    data: Data = Data()
    partition: Partition = Partition()
    training: Training = Training()
    strategy: Strategy = Strategy()
    privacy: Privacy = Privacy()
    secure_aggregation: SecureAggregation = SecureAggregation()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    simulation: Simulation = Simulation()
    federation: Federation = Federation()

    @model_validator(mode="after")
    def _possible(self) -> Experiment:
        declared = self.federation.num_members
        known = self._fewest_present if declared else self.partition.num_clients * self.partition.is_counted
        if declared and not known:
            raise ValueError("federation.sites: there is a round that no site takes part in")
        if known and self.training.clients_per_round > known:
            raise ValueError(f"training.clients_per_round is above the {known} clients there are")
        tabular, columns = self.task.is_tabular, self.data.columns
        if tabular and columns is not None and not columns.columns and self.data.arrays is None:
            raise ValueError("data.schema.columns: a tabular task needs at least one column")
        cohort = self.training.clients_per_round or known
        if cohort and self.secure_aggregation.enabled:
            try:
                self.secure_aggregation.check_cohort(cohort)
            except ValueError as error:
                raise ValueError(f"secure_aggregation.{error}") from None
        self._check_strategy(cohort)
        self._check_privacy()
        return self

    def _check_strategy(self, cohort: int) -> None:
        name, secure, training = self.strategy.name, self.secure_aggregation, self.training
        said = [*self.partition.steps, *(site.steps or 0 for site in self.federation.sites)]
        if max(said, default=0) > training.local_steps:
            raise ValueError(
                f"training.local_steps = {training.local_steps} is what a round is charged for: no site takes more"
            )
        if name == "fednova" and (training.optimizer != "sgd" or training.schedule_by == "step"):
            raise ValueError(
                'strategy.name = "fednova" knows what steps of optimizer = "sgd" add up to '
                'at a learning rate that is the same in all of a round (training.schedule_by = "round")'
            )
        self._check_keeping(name)
        if (need := SINGLE_UPDATES.get(name)) is None:
            return
        if secure.enabled:
            raise ValueError(
                f'strategy.name = "{name}" {need}, and a secure sum shows none: '
                "set secure_aggregation.enabled = false, where the sites' policies allow it"
            )
        if self.privacy.client is not None:
            raise ValueError(
                f'strategy.name = "{name}" {need}; the noise of privacy.client is for their sum alone'
            )
        if cohort:
            try:
                self.strategy.check_cohort(cohort - secure.max_dropouts)
            except ValueError as error:
                raise ValueError(f"strategy.{error}") from None

    def _check_keeping(self, name: str) -> None:
        training, evaluation, record = self.training, self.evaluation, self.privacy.record
        if name in KEEPING and (self.partition.kind == "virtual" or self.federation.population):
            raise ValueError(f'strategy.name = "{name}": a virtual client has no folder to keep anything in')
        if name in PERSONAL and evaluation.patience:
            raise ValueError(
                "evaluation.patience releases the model of an earlier round; "
                f'what sites keep with strategy.name = "{name}" goes with the last one'
            )
        if name == "fedbn" and record is not None:
            raise ValueError(
                'strategy.name = "fedbn": BatchNorm mixes records, so that none of them can be protected; '
                'with privacy.record use "fedper" and GroupNorm'
            )
        if name == "ditto" and record is not None and evaluation.metrics:
            raise ValueError(
                "evaluation.metrics would be of the sites' own models, "
                'which privacy.record does not pay for with strategy.name = "ditto"'
            )
        plain = training.optimizer == "sgd" and not training.momentum
        plain = plain and training.schedule == "constant" and not training.warmup_rounds
        if name == "scaffold" and not plain:
            raise ValueError(
                'strategy.name = "scaffold" knows the mean gradient of optimizer = "sgd" without momentum, '
                'at a learning rate that is the same in every round (training.schedule = "constant", no warmup_rounds)'
            )
        if name == "scaffold" and (self.partition.steps or any(site.steps for site in self.federation.sites)):
            raise ValueError('strategy.name = "scaffold" needs the same number of steps at all sites')

    def _check_privacy(self) -> None:
        record = self.privacy.record
        riders = [name for name in ("curves", "explain") if getattr(self.evaluation, name)]
        for name in riders:
            if not self.evaluation.metrics:
                raise ValueError(f"evaluation.{name} goes with the metrics: set evaluation.metrics = true")
            if self.privacy.client is not None:
                raise ValueError(
                    f"evaluation.{name} and privacy.client exclude each other: noise for a whole client drowns it"
                )
        if self.evaluation.groups and not self.evaluation.curves:
            raise ValueError("evaluation.groups belongs to evaluation.curves = true")
        if self.evaluation.patience and not self.evaluation.metrics:
            raise ValueError("evaluation.patience reads metrics: set evaluation.metrics = true")
        if self.privacy.client is not None:
            self._check_client_privacy(self.privacy.client)
        if record is None:
            return
        if self.evaluation.metrics and record.metrics_share == 0:
            raise ValueError(
                "evaluation.metrics in a private run must be paid for: set privacy.record.metrics_share, e.g. 0.1"
            )
        population = min(self.federation.sizes, default=0)
        if population and record.delta >= 1 / population:
            raise ValueError(
                f"privacy.record.delta must be below 1/{population}, one over the rows of the smallest declared site"
            )

    def _check_client_privacy(self, client: ClientPrivacy) -> None:
        secure, members = self.secure_aggregation, self.federation.num_members
        if client.noise == "distributed" and not secure.enabled:
            raise ValueError(
                'privacy.client.noise = "distributed" needs secure_aggregation.enabled: one share of the noise '
                "protects no single update"
            )
        if self.strategy.weights != "equal":
            raise ValueError('privacy.client counts every client alike: strategy.weights must be "equal"')
        if self.data.columns is not None and self.data.columns.scaling == "federated":
            raise ValueError('data.schema.scaling = "federated" is not paid for by privacy.client')
        if members and client.delta >= 1 / members:
            raise ValueError(f"privacy.client.delta must be below 1/{members}, one over the declared sites")
        if client.target_quantile and not client.clip_range[0] <= secure.update_clip <= client.clip_range[1]:
            raise ValueError("secure_aggregation.update_clip is outside privacy.client.clip_range")

    @property
    def cohort_size(self) -> int:
        """Clients per round, with 0 resolved to all declared sites.

        Where sites join late or leave it is as many as there are in every round: threshold, words and noise of a
        sum follow from this one number.
        """
        return self.training.clients_per_round or self._fewest_present

    @property
    def _fewest_present(self) -> int:
        return self.federation.fewest_present(self.training.rounds)

    def to_toml(self) -> str:
        """Canonical TOML text: equal experiments give equal bytes."""
        return tomli_w.dumps(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    def with_tables(self, **tables: Any) -> Experiment:
        """A copy with some tables replaced, validated again."""
        merged = self.model_dump(mode="python", by_alias=True, exclude_none=True)
        for name, table in tables.items():
            merged[name] = (
                table.model_dump(by_alias=True, exclude_none=True) if isinstance(table, Frozen) else table
            )
        return parse(merged, source="")


def load(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Reads an experiment file and applies `key=value` overrides.

    Raises:
        ConfigError: one line that names the file and the key.
    """
    return loads(_read_text(path), source=str(path), overrides=overrides)


def loads(text: str, *, source: str = "", overrides: Sequence[str] = ()) -> Experiment:
    """Like `load`, from TOML text."""
    tables = parse_toml(text, source)
    overridden = [_override(tables, override) for override in overrides]
    try:
        return parse(tables, source=source)
    except ConfigError as error:
        if any(f"{error.key}.".startswith(f"{key}.") for key in overridden):
            error = ConfigError(error.reason, source="--set", key=error.key)
        raise error from None


def parse(tables: Mapping[str, Any], *, source: str) -> Experiment:
    """Validates already parsed tables; `ConfigError` names the first offending key."""
    return _validated(Experiment, tables, source)


def load_as(kind: type[Kind], path: Path) -> Kind:
    """Like `load`, for any other file that is one such table."""
    return _validated(kind, read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; `ConfigError` where it cannot be read or is none."""
    return parse_toml(_read_text(path), str(path))


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """The tables of a TOML text; `ConfigError` where it is none."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also for a number or a nesting without end
        raise ConfigError(f"not valid TOML: {error}", source=source, key=_key_at(text, error)) from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {_os_reason(error)}", source=path) from None


def _validated(kind: type[Kind], tables: Mapping[str, Any], source: str) -> Kind:
    try:
        return kind.model_validate(tables)
    except ValidationError as error:
        raise first_problem(error, source) from None


def _override(tables: dict[str, Any], text: str) -> str:
    """Applies one `a.b.c=value` and returns the key; the value is TOML, or else a plain string.

    `privacy=none` removes a table.
    """
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"{text!r} is not key=value", source="--set")
    target = tables
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError("is not a table", source="--set", key=part)
    if value.strip() == "none":
        target.pop(parts[-1], None)
    else:
        target[parts[-1]] = toml_value(value)
    return ".".join(parts)


def toml_value(text: str) -> Any:
    """What a value on a command line means: TOML, or else plain text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _key_at(text: str, error: Exception) -> str:
    """What stands before the `=` in the line that a TOML error names; "" where it names none."""
    found = re.search(r"at line (\d+)", str(error))
    line = text.split("\n")[int(found[1]) - 1] if found else ""
    return line.partition("=")[0].strip()[:60]


def first_problem(error: ValidationError, source: str) -> ConfigError:
    """The first problem of a validation error, in the words of the file."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"] if part not in KINDS)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "unknown key"
    elif problem["type"] == "missing":
        message = "required key is missing"
    elif problem["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, not {_shown(problem['input'])}"
    return ConfigError(message, source=source, key=key)


def _shown(value: object) -> str:
    text = "a table" if isinstance(value, dict) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _os_reason(error: OSError | UnicodeDecodeError) -> str:
    return "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or str(error))
