"""One TOML file per experiment, validated into one frozen object from which everything else is derived.

`[task]` and `[training]` are in `tacit.learning`, `[strategy]` in `tacit.algorithms`. Fields that change privacy stand
in `Training` (`max_batch` apart), `RecordPrivacy`, `ClientPrivacy`, `SecureAggregation` and `Evaluation`; fields that
change only speed or comfort stand in `Simulation` (its fault list apart) and `Checkpoints`.

Longer than 400 lines because what the tables must have of each other is checked in one place, with the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, model_validator

from tacit import toml
from tacit.algorithms import KEEPING, PERSONAL, SINGLE_UPDATES, Strategy
from tacit.augmentation import ROWS, records_of_shape
from tacit.data.array_schema import ArraySchema
from tacit.data.schema import Count, Fraction, Frozen, Positive, Schema, Text
from tacit.errors import ConfigError
from tacit.learning import TEXT, Task, Training
from tacit.population import Labels
from tacit.shifts import AnyShift


class Data(Frozen):
    """`[data]`: where the rows come from and which of them are held out.

    Attributes:
        source: a built-in data set; "csv", "parquet", "npz" or "images" with `path`; "generated" with `generator`.
        path: the file, for "csv", "parquet" and "npz"; the folder of "images".
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
        "images",
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
        if self.source in ("csv", "parquet", "npz", "images") and not self.path:
            raise ValueError(f'source = "{self.source}" needs path')
        if self.source == "images" and (self.arrays is None or self.arrays.images is None):
            raise ValueError('source = "images" needs the table data.arrays.images; it may be empty')
        if self.source in ("csv", "parquet") and self.arrays and not self.arrays.in_table:
            raise ValueError(f'source = "{self.source}" with data.arrays needs data.arrays.series or lists')
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
    """`[privacy.record]`: one record of one site, a row or an array; noise at the site, in every step.

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


class Concept(Frozen):
    """`[evaluation.concepts.NAME]`: what a record may be like; one of the last three keys says it.

    Attributes:
        column: of data.schema.
        above: a number is more than this.
        below: a number is less than this.
        equals: a category is this one.
    """

    column: Text
    above: float | None = None
    below: float | None = None
    equals: Text | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Concept:
        if [self.above, self.below, self.equals].count(None) != 2:
            raise ValueError("needs one of above, below and equals")
        return self

    @property
    def threshold(self) -> float:
        """Of a number."""
        found = self.below if self.above is None else self.above
        assert found is not None
        return found

    @property
    def text(self) -> str:
        """In words, e.g. "age > 65"."""
        if self.equals is not None:
            return f"{self.column} = {self.equals}"
        return f"{self.column} {'<' if self.above is None else '>'} {self.threshold:g}"


class Evaluation(Frozen):
    """`[evaluation]`: metrics of the global model that the server learns, and what it does with them.

    Attributes:
        metrics: send metric sums (exact without privacy; noised and paid from `metrics_share` with it).
        curves: with them counts of outcomes: confusion matrix, curves, calibration (classes only).
        bins: of a probability in those counts; even.
        groups: categorical column by whose values the counts are kept apart; empty = by none.
        smallest_group: a group of fewer records is not shown.
        explain: with the metrics how much the model goes by each column, by this method (`tacit.tasks.importance`).
        concepts: by name, of which predictions are asked whether they lean on them (`tacit.tasks.concepts`).
        patience: stop after so many rounds without a better `monitor`; 0 = run all rounds.
        monitor: metric that early stopping and the best-checkpoint choice read.
    """

    metrics: bool = False
    curves: bool = False
    bins: Annotated[int, Field(ge=2, le=200, multiple_of=2)] = 20
    groups: str = ""
    smallest_group: Annotated[int, Field(ge=1)] = 20
    explain: Literal["", "saliency", "integrated_gradients", "occlusion", "shap", "lime"] = ""
    concepts: dict[Text, Concept] = Field(default_factory=dict)
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

    def present(self, round_number: int, separation: int = 1) -> Sequence[str]:
        """Labels of the members that may be invited to a round, in roster order.

        Args:
            round_number: from 1.
            separation: a member has its turn once in so many rounds, by its place in the roster.
        """
        if self.population and separation == 1:
            return self.labels
        turn = slice((round_number - 1) % separation, None, separation)
        if self.population:
            return self.labels[turn]
        return [site.label for site in self.sites[turn] if site.takes_part(round_number)]

    def fewest_present(self, rounds: int, separation: int = 1) -> int:
        """How many members may be invited to the round that has fewest of them."""
        if self.population:
            return self.population.size // separation
        changes = {1, *(t for site in self.sites for t in (site.joins, site.leaves) if t)}
        turns = {t + i for t in changes for i in range(separation) if t + i <= rounds}
        return min(len(self.present(turn, separation)) for turn in turns)


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
        declared, separation = self.federation.num_members, self.strategy.separation
        members = declared or self.partition.num_clients * self.partition.is_counted
        if members and separation > members:
            raise ValueError(
                f"strategy.{self.strategy.turns} = {separation} needs as many clients to take turns, and there are "
                f"{members}"
            )
        known = self._fewest_present if declared else members // separation
        if declared and not known:
            raise ValueError("federation.sites: there is a round that no site takes part in")
        turns = (
            f" in a turn: strategy.{self.strategy.turns} = {separation} makes {separation} turns of the {members} "
            "clients" + " (strategy.bands is its least)" * (self.strategy.name == "dp_ftrl")
        ) * (separation > 1)
        if known and self.training.clients_per_round > known:
            raise ValueError(f"training.clients_per_round is above the {known} clients there are{turns}")
        if not self.task.is_own:
            arrays = None if self.task.is_tabular else self.data.arrays
            self.task.augment.check_fits(records_of_shape(arrays.shape) if arrays else ROWS)
        tabular, columns = self.task.is_tabular, self.data.columns
        if tabular and columns is not None and self.data.arrays is None:
            if (self.task.kind in TEXT) != (columns.text is not None):
                raise ValueError(f"data.schema.text: belongs to task.kind = {' or '.join(map(repr, TEXT))}")
            if not columns.columns and columns.text is None:
                raise ValueError("data.schema.columns: a tabular task needs at least one column")
        cohort = self.training.clients_per_round or known
        if cohort and self.secure_aggregation.enabled:
            try:
                self.secure_aggregation.check_cohort(cohort)
            except ValueError as error:
                why = "" if self.training.clients_per_round else turns
                raise ValueError(f"secure_aggregation.{error}{why}") from None
        self._check_strategy(cohort)
        self._check_evaluation()
        self._check_privacy()
        return self

    def _check_strategy(self, cohort: int) -> None:
        name, secure, training = self.strategy.name, self.secure_aggregation, self.training
        if self.task.generator_every > training.local_steps:
            raise ValueError(
                f"task.generator_every is above training.local_steps = {training.local_steps}: "
                "the generator would make no step"
            )
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
        if name == "fedbuff" and evaluation.patience:
            raise ValueError(
                'evaluation.patience goes by the model that a round begins from, and with strategy.name = "fedbuff" '
                "later ones are under way by then"
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
        if name == "scaffold" and training.rate_factors:
            raise ValueError(
                'strategy.name = "scaffold" knows the mean gradient at one learning rate: no rate_factors'
            )
        if name == "scaffold" and (self.partition.steps or any(site.steps for site in self.federation.sites)):
            raise ValueError('strategy.name = "scaffold" needs the same number of steps at all sites')

    def _check_evaluation(self) -> None:
        riders = [name for name in ("curves", "explain", "concepts") if getattr(self.evaluation, name)]
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

    def _check_privacy(self) -> None:
        record = self.privacy.record
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
        if self.strategy.name == "dp_ftrl" and client.noise == "distributed":
            raise ValueError(
                'strategy.name = "dp_ftrl" takes back noise of earlier rounds, whose clients have gone: it needs '
                'privacy.client.noise = "central", a trusted server that knows all of it'
            )
        if self.strategy.name == "dp_ftrl" and client.target_quantile:
            raise ValueError(
                'strategy.name = "dp_ftrl" takes back noise of earlier rounds, which counted in units of the clip norm '
                "in force then: leave privacy.client.target_quantile at 0"
            )
        if self.strategy.name == "fedbuff" and client.target_quantile:
            raise ValueError(
                'strategy.name = "fedbuff" begins a round before the clip norm of the one before it is known: leave '
                "privacy.client.target_quantile at 0"
            )
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
        return self.federation.fewest_present(self.training.rounds, self.strategy.separation)

    def invited(self, round_number: int) -> Sequence[str]:
        """Labels of the members that a round's cohort is drawn from, in roster order."""
        return self.federation.present(round_number, self.strategy.separation)

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
    return loads(toml.read_text(path), source=str(path), overrides=overrides)


def loads(text: str, *, source: str = "", overrides: Sequence[str] = ()) -> Experiment:
    """Like `load`, from TOML text."""
    tables = toml.parse_toml(text, source)
    overridden = [toml.override(tables, override) for override in overrides]
    try:
        return parse(tables, source=source)
    except ConfigError as error:
        if any(f"{error.key}.".startswith(f"{key}.") for key in overridden):
            error = ConfigError(error.reason, source="--set", key=error.key)
        raise error from None


def parse(tables: Mapping[str, Any], *, source: str) -> Experiment:
    """Validates already parsed tables; `ConfigError` names the first offending key."""
    return toml.validated(Experiment, tables, source)
