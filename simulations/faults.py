"""Fault lists: who fails where and who lies how, from a TOML file, so that a simulation can play the same again.

[[fault]]
rounds = [2, 5]       # or round = 2; or every = 5, that is 5, 10, 15 ...
site = "site-3"       # or share = 0.2 of all sites, drawn anew for each round by the seed
phase = "vector"
kind = "drop"

docs/faults.md says what each kind does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from tacit.config import Experiment, first_problem, parse_toml
from tacit.data.schema import Frozen
from tacit.errors import ConfigError

PHASES: Final = {
    "keys": "train.tacit0",
    "shares": "train.tacit1",
    "vector": "train.tacit2",
    "confirm": "train.tacit3",
    "open": "train.tacit4",
}
TRAINING: Final = "training"  # the one phase where no protocol runs
STEPS: Final = {step: phase for phase, step in PHASES.items()} | {"train": TRAINING, "train.ideal": TRAINING}

# A site that fails, a site that lies, a server that lies to a site: kind -> the phases in which it can.
FAILURES: Final = dict.fromkeys(("drop", "late", "refuse", "crash"), (*PHASES, TRAINING))
LIES: Final[Mapping[str, tuple[str, ...]]] = {
    "bad-share": ("shares", "open"),
    "wrong-length": ("vector",),
    "replay": tuple(PHASES),
    "garbage": tuple(PHASES),
    "boost": ("keys",),
    "nan": ("keys",),
    "other-model": ("keys",),
    "swap-key": ("shares",),
    "survivors": ("confirm",),
    "two-sets": ("confirm",),
}
KINDS: Final = {**FAILURES, **LIES}
OF_KIND: Final = {"reason": "refuse", "factor": "boost"}  # a key that only one kind has

Number = Annotated[int, Field(ge=1)]


class Fault(Frozen):
    """`[[fault]]`: one kind of failure or lie, at some sites in some rounds.

    Attributes:
        kind: one of `KINDS`.
        phase: of the round; "training" where no protocol runs.
        site: label of the site.
        share: instead of `site`: this share of all sites, at least one.
        round: number of the round, from 1.
        rounds: instead: several.
        every: instead: each round that this number divides.
        attempt: only in this attempt of the round; None = in each.
        reason: of "refuse": the code that is sent.
        factor: of "boost": what the update is multiplied by.
    """

    kind: Literal[
        "drop", "late", "refuse", "crash",
        "bad-share", "wrong-length", "replay", "garbage", "boost", "nan",
        "other-model", "swap-key", "survivors", "two-sets",
    ]  # fmt: skip
    phase: Literal["keys", "shares", "vector", "confirm", "open", "training"]
    site: str = ""
    share: Annotated[float | None, Field(gt=0, le=1)] = None
    round: Number | None = None
    rounds: Annotated[tuple[Number, ...], Field(strict=False)] = ()
    every: Number | None = None
    attempt: Number | None = None
    reason: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")] = "unavailable"
    factor: float = 10.0

    @model_validator(mode="after")
    def _clear(self) -> Fault:
        if (self.round is not None) + bool(self.rounds) + (self.every is not None) != 1:
            raise ValueError("needs one of round, rounds and every")
        if bool(self.site) + (self.share is not None) != 1:
            raise ValueError("needs one of site and share")
        if self.phase not in KINDS[self.kind]:
            raise ValueError(f'kind "{self.kind}" has phase {" or ".join(KINDS[self.kind])}')
        for key, kind in OF_KIND.items():
            if key in self.model_fields_set and self.kind != kind:
                raise ValueError(f'{key} belongs to kind = "{kind}"')
        return self

    def strikes(self, round_number: int) -> bool:
        """Whether this is one of its rounds; round 0, in which a scaling is learnt, never is."""
        if self.every is not None:
            return round_number > 0 and round_number % self.every == 0
        return round_number in self.rounds or round_number == self.round


@dataclass(frozen=True)
class FaultList:
    """A list that fits its experiment.

    Attributes:
        source: the file.
        text: its content, as it was read.
        faults: the entries; entry n of the file is at n - 1.
        seed: of the experiment.
        labels: of all sites, in roster order; empty before they are known.
    """

    source: str
    text: str
    faults: tuple[Fault, ...]
    seed: int
    labels: tuple[str, ...] = ()

    @classmethod
    def load(cls, experiment: Experiment) -> FaultList | None:
        """The list that an experiment names, if it names one.

        Raises:
            ConfigError: one line with the file, the number of the entry (from 1) and the key.
        """
        source = experiment.simulation.faults
        if not source:
            return None
        text = _read(Path(source))
        faults = _parsed(text, source)
        for number, fault in enumerate(faults, start=1):
            try:
                check_possible(fault, experiment)
            except ValueError as error:
                raise ConfigError(str(error), source=source, key=f"fault {number}") from None
        return cls(source, text, faults, experiment.seed)

    def among(self, labels: Sequence[str]) -> FaultList:
        """The same list, now that the sites are known; `ConfigError` where it names one that does not exist."""
        for number, fault in enumerate(self.faults, start=1):
            if fault.site and fault.site not in labels:
                known = ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
                raise ConfigError(
                    f"there is no site {fault.site!r}; there are {known}",
                    source=self.source,
                    key=f"fault {number}: site",
                )
        return FaultList(self.source, self.text, self.faults, self.seed, tuple(labels))

    def sites(self, number: int, round_number: int) -> list[str]:
        """At which sites entry `number` (from 1) strikes in this round, in roster order."""
        fault = self.faults[number - 1]
        if not fault.strikes(round_number):
            return []
        if fault.site:
            return [fault.site]
        count = max(1, round(float(fault.share or 0) * len(self.labels)))
        return [self.labels[i] for i in _drawn(self.seed, number, round_number, len(self.labels), count)]

    def at(self, label: str, round_number: int, attempt: int, phase: str) -> tuple[int, Fault] | None:
        """The first entry, with its number, that strikes here; where two do, only the first is played."""
        for number, fault in enumerate(self.faults, start=1):
            here = fault.phase == phase and fault.attempt in (None, attempt)
            if here and label in self.sites(number, round_number):
                return number, fault
        return None


def check_possible(fault: Fault, experiment: Experiment) -> None:
    """Raises `ValueError` where an experiment has no such round or phase."""
    last, secure = experiment.training.rounds, experiment.secure_aggregation
    first = fault.round or fault.every or min(fault.rounds)
    if max(first, *fault.rounds, 0) > last:
        raise ValueError(f"round {max(first, *fault.rounds, 0)} of a run that has {last}")
    protocol = secure.enabled and secure.engine == "protocol"
    mode = "the ideal sum" if secure.enabled else "a run without a secure sum"
    if not protocol and fault.kind in LIES:
        raise ValueError(
            f'kind "{fault.kind}" is a lie within the protocol; {mode} plays {", ".join(FAILURES)} only'
        )
    if protocol == (fault.phase == TRAINING):
        has = ", ".join(PHASES) if protocol else TRAINING
        raise ValueError(f'phase "{fault.phase}": {"the protocol" if protocol else mode} has {has}')


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError("cannot be read: not UTF-8 text", source=path) from None
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror or error}", source=path, key="simulation.faults"
        ) from None


def _parsed(text: str, source: str) -> tuple[Fault, ...]:
    tables = parse_toml(text, source)
    if unknown := sorted(set(tables) - {"fault"}):
        raise ConfigError("unknown key", source=source, key=unknown[0])
    entries = tables.get("fault")
    if not isinstance(entries, list) or not entries:
        raise ConfigError("there is no [[fault]] in it", source=source)
    return tuple(_entry(entry, number, source) for number, entry in enumerate(entries, start=1))


def _entry(entry: Any, number: int, source: str) -> Fault:
    try:
        return Fault.model_validate(entry)
    except ValidationError as error:
        problem = first_problem(error, source)
        key = f"fault {number}: {problem.key}" if problem.key else f"fault {number}"
        raise ConfigError(problem.reason, source=source, key=key) from None


@lru_cache(maxsize=256)  # each message of a round asks
def _drawn(seed: int, number: int, round_number: int, num_sites: int, count: int) -> tuple[int, ...]:
    rng = np.random.Generator(np.random.PCG64([seed, number, round_number]))
    return tuple(sorted(rng.choice(num_sites, size=count, replace=False).tolist()))
