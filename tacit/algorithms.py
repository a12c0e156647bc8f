"""`[strategy]`: how updates become the next model, which keys each strategy has, and what it needs of the updates."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from tacit.data.schema import Frozen

Rate = Annotated[float, Field(gt=0, le=1000)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Name = Literal[
    "fedavg", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi",
    "fednova", "fedper", "fedbn", "ditto", "scaffold", "dp_ftrl", "fedbuff",
    "krum", "multikrum", "fedmedian", "fedtrimmedavg",
]  # fmt: skip

# What a strategy does with single updates, where the mean is not enough for it.
SINGLE_UPDATES: Final = {
    "krum": "compares single updates with each other",
    "multikrum": "compares single updates with each other",
    "fedmedian": "takes the median of single updates",
    "fedtrimmedavg": "leaves out the largest and smallest of single updates",
}

# Strategies with which a site keeps something from round to round that never leaves it.
KEEPING: Final = ("fedper", "fedbn", "ditto", "scaffold")
PERSONAL: Final = ("fedper", "fedbn", "ditto")  # a model of its own

_ADAPTIVE: Final = {"server_learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
# The keys of each strategy beside `name` and `weights`, and what they are where the experiment does not say it.
KEYS: Final[dict[str, dict[str, Any]]] = {
    "fedavg": {},
    "fedprox": {"proximal_mu": 0.0},
    "fedavgm": {"server_learning_rate": 1.0, "server_momentum": 0.9},
    "fedadagrad": {"server_learning_rate": 0.1, "tau": 1e-3},
    "fedadam": _ADAPTIVE,
    "fedyogi": {**_ADAPTIVE, "server_learning_rate": 0.01},
    "fednova": {},
    "fedper": {"personal": ()},
    "fedbn": {},
    "ditto": {"personal_mu": 0.1},
    "scaffold": {"server_learning_rate": 1.0},
    "dp_ftrl": {"bands": 4, "min_separation": None, "server_learning_rate": 1.0, "server_momentum": 0.0},
    "fedbuff": {"cohorts_at_once": 2, "server_learning_rate": 1.0},
    "krum": {"num_malicious": 1},
    "multikrum": {"num_malicious": 1, "num_selected": 2},
    "fedmedian": {},
    "fedtrimmedavg": {"trimmed_share": 0.2},
}


class Strategy(Frozen):
    """`[strategy]`: how updates become the next model.

    Attributes:
        name: see docs/strategies.md, which says what each one needs.
        weights: aggregation weights, always public: equal, or in proportion to the declared sizes.
        proximal_mu: FedProx's pull towards the global model.
        personal: of FedPer: names of the model's arrays that never leave a site, with * and ? as in a shell.
        personal_mu: of Ditto: pull of each site's own model towards the common one.
        server_learning_rate: of the server's own step; None = the strategy's default, as below: `KEYS`.
        server_momentum: of FedAvgM and DP-FTRL.
        bands: of DP-FTRL: noise of a round takes back noise of so many rounds, its own among them; 1 = none.
        min_separation: of DP-FTRL: a member is invited at most once in so many rounds; None = as `bands`.
        cohorts_at_once: of FedBuff: rounds under way at a time, none of which have a member in common.
        beta_1: decay of the mean of the updates, of FedAdam and FedYogi.
        beta_2: decay of the mean of their squares.
        tau: added to the root of that; the smaller, the more a coordinate's step forgets the size of its update.
        num_malicious: f; Krum and MultiKrum bear so many updates that are made to harm.
        num_selected: of MultiKrum: how many updates the mean is over.
        trimmed_share: of FedTrimmedAvg: share of the updates that is left out at either end, per coordinate.
    """

    name: Name = "fedavg"
    weights: Literal["equal", "declared"] = "equal"
    proximal_mu: Annotated[float, Field(ge=0)] = 0.0
    personal: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] = ()
    personal_mu: Annotated[float, Field(ge=0)] | None = None
    server_learning_rate: Rate | None = None
    server_momentum: Decay | None = None
    bands: Annotated[int, Field(ge=1, le=1024)] | None = None
    min_separation: Annotated[int, Field(ge=1)] | None = None
    cohorts_at_once: Annotated[int, Field(ge=1, le=64)] | None = None
    beta_1: Decay | None = None
    beta_2: Decay | None = None
    tau: Annotated[float, Field(gt=0, le=1)] | None = None
    num_malicious: Annotated[int, Field(ge=0)] | None = None
    num_selected: Annotated[int, Field(ge=1)] | None = None
    trimmed_share: Annotated[float, Field(gt=0, lt=0.5)] | None = None

    @model_validator(mode="after")
    def _fitting(self) -> Strategy:
        for key, field in type(self).model_fields.items():
            if key in ("name", "weights") or key in KEYS[self.name] or getattr(self, key) == field.default:
                continue
            owners = " or ".join(f'"{name}"' for name, keys in KEYS.items() if key in keys)
            raise ValueError(f"{key} belongs to name = {owners}")
        if self.name == "fedper" and not self.personal:
            raise ValueError('name = "fedper" needs personal, the names of the arrays that stay at a site')
        if self.name == "dp_ftrl" and self.separation < self.value("bands"):
            raise ValueError(
                f"min_separation = {self.min_separation} is below bands = {self.value('bands')}: "
                "noise that two rounds share pays for a client in one of them"
            )
        if self.name == "dp_ftrl":
            self._check_noise()
        if self.weights == "declared" and self.name in ("krum", "fedmedian", "fedtrimmedavg"):
            raise ValueError(f'name = "{self.name}" counts every update alike: weights must be "equal"')
        return self

    def _check_noise(self) -> None:
        from tacit.privacy.banded import dies_away  # which loads numpy

        if not dies_away(int(self.value("bands")), self.value("server_momentum")):
            raise ValueError(
                f"server_momentum = {self.server_momentum} is so near 1 that noise is not taken back for good: it "
                "must be below 0.996, or bands = 1"
            )

    def value(self, key: str) -> float:
        """What a key of this strategy is: as the experiment says, or the strategy's default."""
        said: float | None = getattr(self, key)
        return KEYS[self.name][key] if said is None else said

    @property
    def separation(self) -> int:
        """A member is invited at most once in so many rounds."""
        if self.name == "dp_ftrl":
            return int(self.min_separation or self.value("bands"))
        return self.at_once

    @property
    def turns(self) -> str:
        """The key that says so."""
        return "cohorts_at_once" if self.name == "fedbuff" else "min_separation"

    @property
    def at_once(self) -> int:
        """Rounds that are under way at a time."""
        return int(self.value("cohorts_at_once")) if self.name == "fedbuff" else 1

    def check_cohort(self, n: int) -> None:
        """Raises `ValueError` unless the strategy does what it promises with n updates.

        Krum: Blanchard et al., "Machine learning with adversaries", NeurIPS 2017, Proposition 4.2: 2 f + 2 < n.
        """
        if self.name in ("krum", "multikrum"):
            harmful = int(self.value("num_malicious"))
            if n < 2 * harmful + 3:
                raise ValueError(
                    f"num_malicious = {harmful} needs {2 * harmful + 3} updates; {n} are sure to arrive"
                )
            if self.name == "multikrum" and self.value("num_selected") > n - harmful:
                raise ValueError(f"num_selected is above the {n - harmful} updates that need not be harmful")
        if self.name == "fedtrimmedavg" and self.value("trimmed_share") * n < 1:
            raise ValueError(
                f"trimmed_share = {self.value('trimmed_share'):g} leaves out none of {n} updates"
            )


def begins_from(round_number: int, at_once: int) -> int:
    """The round whose model a round begins from, where so many are under way at a time; 0 = the first model."""
    return max(0, round_number - at_once)
