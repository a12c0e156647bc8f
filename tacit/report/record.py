"""The record of one run: the content of report.json, and all that the pages about a run are made from.

docs/report.md explains every key. Numbers are finite or, spelled out, "inf"; an undefined one (the AUROC of a
site with one class) is null. Longer than 400 lines because every key of report.json is explained here.

Longer than 400 lines because every key that a report may have is found here.

Guarantees:
    A record that claims a finite epsilon which its own configuration does not back cannot be made.
    A record of a deployment holds no figure of a single site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)


def _number(value: Any) -> Any:
    """Accepts numpy and torch scalars and the spelling "inf"; NaN becomes None."""
    if value in ("inf", "-inf"):
        return float(value)
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def _spelled(value: float | None) -> float | str | None:
    """JSON has no infinity: it is written as a word."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _plain(value: Any) -> Any:
    """A free-form value as JSON's own types, so that what is read back equals what was written."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool):
        return value
    number = _number(value)
    if number is None or isinstance(number, int | float):
        return _spelled(number)
    raise ValueError(f"{type(value).__name__} has no form in JSON")


Number = Annotated[float | None, BeforeValidator(_number), PlainSerializer(_spelled, when_used="json")]
Epsilon = Annotated[float, BeforeValidator(_number), Field(ge=0), PlainSerializer(_spelled, when_used="json")]
Count = Annotated[int, BeforeValidator(_number), Field(ge=0)]
Seconds = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
Metrics = dict[str, Number]
Table = Annotated[dict[str, Any], AfterValidator(_plain)]
Unit = Literal["record", "client", "none"]


class Part(BaseModel):
    """Base of every part of a record: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Round(Part):
    """One round.

    Attributes:
        round: number, from 1.
        cohort: labels of the clients asked.
        survivors: labels of the clients whose update is in the sum.
        metrics: of the model after this round, exact, on held-out rows. Simulation only.
        epsilon: of everything released up to and including this round; infinite when not private.
        private_metrics: what the server itself learned; noised and paid for when the run is private.
        refusals: how many answers were refusals or were refused, by reason code; of several attempts the most.
        attempts: how many the secure sum took; None without the protocol.
        blamed: labels of the clients that dealt or opened shares falsely.
    """

    round: Count
    seconds: Seconds
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    metrics: Metrics = {}
    epsilon: Number = None
    private_metrics: Metrics = {}
    refusals: dict[str, Count] = {}
    attempts: Count | None = None
    blamed: tuple[str, ...] = ()


class SiteResult(Part):
    """Metrics of one model at one site: `rows` held in all, `test_rows` of them tested on."""

    label: str
    rows: Count
    test_rows: Count
    metrics: Metrics


class GroupResult(Part):
    """One group of records: `records` is None, and there are no metrics, where there are too few to be told."""

    name: str
    records: Count | None = None
    metrics: Metrics = {}


class Outcomes(Part):
    """What sums of counted outcomes say of one model (`tacit.tasks.measures`).

    Attributes:
        classes: names, in the order of the confusion matrix.
        confusion: rows are truths, columns predictions; empty, as all figures, where noise has left nothing.
        metrics: those that follow from the counts.
        roc: false and true positive rates; of two classes.
        precision_recall: recall and precision; likewise.
        reliability: probability and the share that it came true, by bin.
        column: whose values are the groups; empty = there are none.
        groups: in order.
        gaps: largest less smallest over the groups shown: demographic parity, equalised odds, accuracy.
        smallest_group: groups of fewer records are not shown.
        noise: standard deviation of the noise in each count; 0 = exact.
        round: whose incoming model it is; None = the final one.
    """

    classes: tuple[str, ...]
    confusion: tuple[tuple[float, ...], ...]
    metrics: Metrics
    roc: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    precision_recall: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    reliability: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    column: str = ""
    groups: tuple[GroupResult, ...] = ()
    gaps: Metrics = {}
    smallest_group: Count = 0
    noise: Seconds = 0.0
    round: Count | None = None


class ColumnShares(Part):
    """How much a model goes by each column (`tacit.tasks.importance`): mean shares over records.

    Attributes:
        method: that the shares were found by.
        columns: names.
        shares: of each, adding up to 1; empty where noise has left nothing of them.
        noise: standard deviation of the noise in a share; 0 = exact.
        round: whose incoming model it is; None = the final one.
    """

    method: str
    columns: tuple[str, ...]
    shares: tuple[float, ...]
    noise: Seconds = 0.0
    round: Count | None = None


class ConceptShares(Part):
    """Which way predictions lean on concepts (`tacit.tasks.concepts`): TCAV scores.

    Attributes:
        concepts: names.
        meanings: in words, e.g. "age > 65".
        classes: that are predicted.
        shares: by concept and class, of the records predicted as it, how often its odds rise along the concept; None
            where noise leaves nothing to be said, or where the class is never predicted.
        chance: how far from one half a concept without any meaning comes, at two standard deviations.
        noise: by class, standard deviation of the noise in a share; 0 = exact; None as for the shares.
        round: whose incoming model it is; None = the final one.
    """

    concepts: tuple[str, ...]
    meanings: tuple[str, ...]
    classes: tuple[str, ...]
    shares: tuple[tuple[Number, ...], ...]
    chance: float
    noise: tuple[Number, ...]
    round: Count | None = None


class Final(Part):
    """The final model.

    Attributes:
        metrics: on the test rows of all sites together; in a deployment, what the server learned last.
        sites: the same model at each site. Simulation only.
        outcomes: exact, on the test rows of all sites together. Simulation only.
        importance: likewise, where the experiment asks for it.
        concepts: likewise.
    """

    metrics: Metrics = {}
    sites: tuple[SiteResult, ...] = ()
    outcomes: Outcomes | None = None
    importance: ColumnShares | None = None
    concepts: ConceptShares | None = None


class Baseline(Part):
    """A comparison: `metrics` over all sites, and where it has them `sites` one by one."""

    metrics: Metrics
    sites: tuple[SiteResult, ...] = ()


class Baselines(Part):
    """Simulation only, all trained without privacy.

    Attributes:
        pooled: one model on all training rows in one place; `metrics` as in `Final`.
        local: each site alone with its own rows; `metrics` is the plain mean over sites.
        majority: each site's most frequent class; `metrics` is the plain mean over sites.
        best: the best that any model could do, where records were generated and their truth is known.
    """

    pooled: Baseline | None = None
    local: Baseline | None = None
    majority: Baseline | None = None
    best: Baseline | None = None


class PrivacyEntry(Part):
    """The promise for one unit of privacy.

    Attributes:
        unit: what is protected: one record, or everything of one client.
        relation: which two inputs count as neighbours, in words.
        epsilon: the upper bound fixed at the start, for all `debits`.
        delta: the probability allowance that goes with it.
        target_epsilon: what the experiment asked for.
        accountant: method and library.
        noise_multiplier: derived; standard deviation of the noise over the clip norm.
        debits: releases that epsilon pays for (rounds and reserve).
        trusted: who must be trusted for the promise to hold.
        not_covered: what the promise is not about.
        mechanism: what adds the noise, in words.
        epsilon_spent: epsilon of the releases really made. Information, never the claim.
        epsilon_if_os_noise: with seeded noise, the epsilon had the noise come from the operating system.
        epsilon_replaced: of unit "client": epsilon where a client contributes something else instead of nothing.
        max_colluding: of unit "client" with the noise of many: clients that may collude with the server.
    """

    unit: Unit
    relation: str
    epsilon: Epsilon
    delta: Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
    target_epsilon: Epsilon
    accountant: str
    noise_multiplier: Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
    debits: Count
    trusted: str
    not_covered: tuple[str, ...] = ()
    mechanism: str = ""
    epsilon_spent: Number = None
    epsilon_if_os_noise: Number = None
    epsilon_replaced: Number = None
    max_colluding: Count | None = None

    @classmethod
    def nothing(cls) -> PrivacyEntry:
        """The entry of a run without privacy: epsilon is infinite, and that is said."""
        return cls(
            unit="none",
            relation="none: no two inputs are promised to look alike",
            epsilon=math.inf,
            delta=0.0,
            target_epsilon=math.inf,
            accountant="none",
            noise_multiplier=0.0,
            debits=0,
            trusted="everybody who receives an update, a sum or a model of this run",
        )

    @model_validator(mode="after")
    def _backed(self) -> PrivacyEntry:
        if math.isfinite(self.epsilon):
            if self.unit == "none":
                raise ValueError('unit "none" has no finite epsilon')
            if not (self.noise_multiplier > 0 and self.delta > 0):
                raise ValueError("a finite epsilon needs noise and a delta above 0")
            return self
        for name in ("epsilon_spent", "epsilon_replaced"):
            value = getattr(self, name)
            if value is not None and math.isfinite(value):
                raise ValueError(f"a finite {name} under an infinite epsilon")
        return self


class SecureSum(Part):
    """How updates were added up.

    Attributes:
        engine: "protocol" = masked; "ideal" = the same integer sum without cryptography (simulation only).
        protocol: its name.
        bits: width of one word on the wire.
        threshold: clients that must answer for the sum to open.
        bytes_up_per_client: sent by one client in one round.
        clipped_fraction: updates cut at the clip norm. Simulation only.
    """

    enabled: bool
    engine: Literal["protocol", "ideal", "none"] = "none"
    protocol: str = "none"
    bits: Count | None = None
    threshold: Count | None = None
    bytes_up_per_client: Number = None
    clipped_fraction: Number = None


class SiteSlice(Part):
    """Which rows one simulated site got; `labels` counts them per class, `shares` gives the fractions."""

    label: str
    rows: Count
    train: Count
    test: Count
    labels: dict[str, Count] = {}
    shares: dict[str, float] = {}

    @model_validator(mode="before")
    @classmethod
    def _with_shares(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and fields.get("labels") and not fields.get("shares"):
            total = sum(fields["labels"].values()) or 1
            shares = {str(name): float(count / total) for name, count in fields["labels"].items()}
            return {**fields, "shares": shares}
        return fields


class SiteDistances(Part):
    """How far simulated sites are from one another: a row and a column for each of `sites`, 0 on the diagonal.

    Attributes:
        sites: labels; the first ones, where there are many.
        labels: Jensen-Shannon distance of the class shares, from 0 to 1.
        features: mean over columns of the Wasserstein distance in half ranges, or of the total variation of a category.
    """

    sites: tuple[str, ...]
    labels: tuple[tuple[float, ...], ...]
    features: tuple[tuple[float, ...], ...] = ()


class PlayedFault(Part):
    """A failure or a lie that a simulation was told to play at one site in one round, and what came of it.

    Attributes:
        fault: number of the entry in the fault list, from 1.
        round: of the run.
        site: label.
        phase: of the round.
        kind: what was played.
        happened: how the site answered, whether its update is in the sum, and whether it was blamed.
    """

    fault: Count
    round: Count
    site: str
    phase: str
    kind: str
    happened: str


class Federation(Part):
    """What the members of a federation had agreed on when a run was made: the epoch of the roster that counted.

    Attributes:
        name: of the federation.
        epoch: its number.
        digest: of the roster, in the groups that operators compare.
        members: N, members that are not revoked.
        signatures: of members under this epoch; 0 where an offline root signs.
        root_key: fingerprint of the offline root that signs in place of the members; empty = none.
        root_holder: who holds it, as the coordinator names them.
        min_clients, max_clients: n_min and n_max, clients that send keys for a sum, fewest and most.
        max_corrupt: c, members of the whole roster that may collude with the coordinator.
        max_dropouts: D, clients that may vanish from a sum.
    """

    name: str
    epoch: Count
    digest: str
    members: Count
    signatures: Count
    root_key: str = ""
    root_holder: str = ""
    min_clients: Count
    max_clients: Count
    max_corrupt: Count
    max_dropouts: Count


class RunRecord(Part):
    """One run, from its resolved experiment to its outcome.

    Attributes:
        experiment: `Experiment.model_dump(mode="json", by_alias=True, exclude_none=True)`.
        engine: "local" and "ray" are simulations; "superlink" is real processes.
        executor: how the local engine has trained its cohorts, and why; how a step's gradients were made.
        learned: counts of outcomes as the server learned them last; noised and paid for when the run is private.
        importance: of columns, as the server learned it last; likewise.
        concepts: likewise.
        ledger: the last entries, oldest first.
        federation: what its members had agreed on. Of real processes only.
        outcome: "finished", "stopped early", "stopped" (by somebody; what is complete is kept) or "failed: reason".
    """

    run_id: str
    started: AwareDatetime
    outcome: Annotated[str, Field(pattern=r"^(finished|stopped early|stopped|failed: .+)$")]
    engine: Literal["local", "ray", "superlink"]
    executor: str = ""
    seed: int
    experiment: Table
    rounds: tuple[Round, ...]
    final: Final
    learned: Outcomes | None = None
    importance: ColumnShares | None = None
    concepts: ConceptShares | None = None
    baselines: Baselines = Baselines()
    privacy: Annotated[tuple[PrivacyEntry, ...], Field(min_length=1)]
    secure_aggregation: SecureSum
    partition: tuple[SiteSlice, ...] = ()
    distances: SiteDistances | None = None
    faults: tuple[PlayedFault, ...] = ()
    federation: Federation | None = None
    timings: dict[str, Seconds] = {}
    versions: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    ledger: tuple[Table, ...] = ()

    @model_validator(mode="after")
    def _claims_nothing_unbacked(self) -> RunRecord:
        units = [entry.unit for entry in self.privacy]
        if len(set(units)) != len(units):
            raise ValueError("privacy has two entries for one unit")
        configured = self.experiment.get("privacy") or {}
        for entry in self.privacy:
            if math.isfinite(entry.epsilon) and entry.unit not in configured:
                raise ValueError(
                    f"a finite epsilon for unit {entry.unit!r} that the experiment does not configure"
                )
            if math.isfinite(entry.epsilon) and self.seeded_noise:
                raise ValueError("seeded noise is not private: epsilon must be infinite")
        spent = [item.epsilon for item in self.rounds if item.epsilon is not None]
        if not self.is_private and any(math.isfinite(epsilon) for epsilon in spent):
            raise ValueError("a finite epsilon after a round of a run that is not private")
        return self

    @model_validator(mode="after")
    def _metrics_are_paid_for(self) -> RunRecord:
        budget = (self.experiment.get("privacy") or {}).get("record")
        sums = self.learned or self.importance or self.concepts
        learned = sums or any(item.private_metrics for item in self.rounds)
        if learned and budget and not budget.get("metrics_share") and not self.seeded_noise:
            raise ValueError("metrics that the server learned in a private run, and that no budget pays for")
        return self

    @model_validator(mode="after")
    def _holds_what_the_server_may_know(self) -> RunRecord:
        known_to_nobody = {
            "final.sites": self.final.sites,
            "final.outcomes": self.final.outcomes is not None,
            "final.importance": self.final.importance is not None,
            "final.concepts": self.final.concepts is not None,
            "partition": self.partition,
            "distances": self.distances,
            "faults": self.faults,
            "baselines": self.baselines != Baselines(),
            "rounds.metrics": any(item.metrics for item in self.rounds),
            "secure_aggregation.clipped_fraction": self.secure_aggregation.clipped_fraction is not None,
        }
        present = [key for key, value in known_to_nobody.items() if value]
        if present and not self.is_simulation:
            raise ValueError(f"only a simulation can know {', '.join(present)}")
        if self.is_simulation and self.federation is not None:
            raise ValueError("a simulation has no federation whose members have agreed on anything")
        return self

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return str(self.experiment.get("name", "unnamed"))

    @property
    def outcomes(self) -> Outcomes | None:
        """Counts of the model's outcomes: of all held-out records, or else what the server learned."""
        return self.final.outcomes or self.learned

    @property
    def is_simulation(self) -> bool:
        """Whether one process held all sites' rows."""
        return self.engine != "superlink"

    @property
    def is_private(self) -> bool:
        """Whether some unit has a finite epsilon."""
        return any(math.isfinite(entry.epsilon) for entry in self.privacy)

    @property
    def seeded_noise(self) -> bool:
        """Whether the noise can be drawn again by anybody who knows the seed."""
        return bool(self.experiment.get("insecure_seeded_noise", False))

    @property
    def labels(self) -> Sequence[str]:
        """Labels of all sites, in the order of the partition or of first appearance."""
        if self.partition:
            return [site.label for site in self.partition]
        return list(dict.fromkeys(label for item in self.rounds for label in item.cohort))
