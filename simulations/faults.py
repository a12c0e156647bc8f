"""Fault lists: who fails where and who lies how, from a TOML file, so that a simulation can play the same again.

[[fault]]
rounds = [2, 5]       # or round = 2; or every = 5, that is 5, 10, 15 ...; or since = 8
site = "site-3"       # or sites = [...]; or share = 0.2 of all sites, drawn anew for each round by the seed
phase = "vector"      # or "drawn"
kind = "drop"
chance = 0.3          # strikes with this probability; together = true: all its sites or none

What is drawn can be written out as a list in which nothing is: the same faults, entry by entry.

docs/faults.md says what each kind does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import tomli_w
from pydantic import Field, ValidationError, model_validator

from tacit.config import Experiment
from tacit.data.schema import Frozen
from tacit.errors import ConfigError
from tacit.toml import first_problem, parse_toml

PHASES: Final = {
    "keys": "train.tacit0",
    "shares": "train.tacit1",
    "vector": "train.tacit2",
    "confirm": "train.tacit3",
    "open": "train.tacit4",
}
TRAINING: Final = "training"  # the one phase where no protocol runs
STEPS: Final = {step: phase for phase, step in PHASES.items()} | {"train": TRAINING, "train.ideal": TRAINING}

# A site that fails, a site that trains on or passes on something else, a site that lies in the protocol, a server that
# lies to a site: kind -> the phases in which it can.
FAILURES: Final = dict.fromkeys(("drop", "late", "straggle", "refuse", "crash"), (*PHASES, TRAINING))
POISONS: Final = dict.fromkeys(("boost", "nan", "flip-labels"), ("keys", TRAINING))
LIES: Final[Mapping[str, tuple[str, ...]]] = {
    "bad-share": ("shares", "open"),
    "wrong-length": ("vector",),
    "replay": tuple(PHASES),
    "garbage": tuple(PHASES),
    "other-model": ("keys",),
    "swap-key": ("shares",),
    "survivors": ("confirm",),
    "two-sets": ("confirm",),
}
KINDS: Final = {**FAILURES, **POISONS, **LIES}
# A key that only one kind has.
OF_KIND: Final = {
    "reason": "refuse",
    "factor": "boost",
    "seconds": "straggle",
    "spread": "straggle",
    "rate": "flip-labels",
    "to": "flip-labels",
}
DRAWN: Final = "drawn"
MOST_WRITTEN: Final = 100_000  # entries of a list that is written out

Number = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Fault(Frozen):
    """`[[fault]]`: one kind of failure or lie, at some sites in some rounds.

    Attributes:
        kind: one of `KINDS`.
        phase: of the round; "training" where no protocol runs; "drawn" = one that the kind can have, for each site.
        site, sites: label, labels.
        share: instead: this share of all sites, at least one, drawn anew for each round.
        round: number of the round, from 1.
        rounds: instead: several.
        every: instead: each round that this number divides.
        since: instead: each round from this one on.
        until: the last of them, with `every` or `since`.
        chance: strikes with this probability, drawn for each round and site.
        together: with `chance`: one draw for all its sites, as when a line fails that they share.
        attempt: only in this attempt of the round; None = in each.
        reason: of "refuse": the code that is sent.
        factor: of "boost": what the update is multiplied by; negative = away from where it has trained to.
        seconds: of "straggle": the median time that an answer takes; too late beyond the deadline.
        spread: of "straggle": of the log-normal law of that time; 0 = always the median.
        rate: of "flip-labels": share of the site's training rows.
        to: of "flip-labels": the class that they are given; empty = another one each, drawn.
        draw: which draws it has; None = those of its own number in the list.
    """

    kind: Literal[
        "drop", "late", "straggle", "refuse", "crash", "boost", "nan", "flip-labels",
        "bad-share", "wrong-length", "replay", "garbage",
        "other-model", "swap-key", "survivors", "two-sets",
    ]  # fmt: skip
    phase: Literal["keys", "shares", "vector", "confirm", "open", "training", "drawn"]
    site: str = ""
    sites: Annotated[tuple[str, ...], Field(strict=False)] = ()
    share: Share | None = None
    round: Number | None = None
    rounds: Annotated[tuple[Number, ...], Field(strict=False)] = ()
    every: Number | None = None
    since: Number | None = None
    until: Number | None = None
    chance: Share | None = None
    together: bool = False
    attempt: Number | None = None
    reason: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")] = "unavailable"
    factor: float = 10.0
    seconds: Annotated[float, Field(gt=0)] = 60.0
    spread: Annotated[float, Field(ge=0, le=10)] = 1.0
    rate: Share = 1.0
    to: str = ""
    draw: Number | None = None

    @model_validator(mode="after")
    def _clear(self) -> Fault:
        when = (self.round, self.every, self.since)
        if sum(value is not None for value in when) + bool(self.rounds) != 1:
            raise ValueError("needs one of round, rounds, every and since")
        if bool(self.site) + bool(self.sites) + (self.share is not None) != 1:
            raise ValueError("needs one of site, sites and share")
        if self.until is not None and self.every is None and self.since is None:
            raise ValueError("until belongs to every or since")
        if self.together and self.chance is None:
            raise ValueError("together belongs to chance")
        if self.phase != DRAWN and self.phase not in KINDS[self.kind]:
            raise ValueError(f'kind "{self.kind}" has phase {" or ".join(KINDS[self.kind])}')
        for key, kind in OF_KIND.items():
            if key in self.model_fields_set and self.kind != kind:
                raise ValueError(f'{key} belongs to kind = "{kind}"')
        return self

    @property
    def named(self) -> tuple[str, ...]:
        """The labels that it names."""
        return (self.site,) if self.site else self.sites

    @property
    def is_drawn(self) -> bool:
        """Whether the seed has a say in where it strikes."""
        return self.share is not None or self.chance is not None or self.phase == DRAWN

    def strikes(self, round_number: int) -> bool:
        """Whether this is one of its rounds; round 0, in which a scaling is learnt, never is."""
        if self.until is not None and round_number > self.until:
            return False
        if self.every is not None:
            return round_number > 0 and round_number % self.every == 0
        if self.since is not None:
            return round_number >= self.since
        return round_number in self.rounds or round_number == self.round


@dataclass(frozen=True)
class Strike:
    """One entry at one site in one round.

    Attributes:
        number: of the entry in the list, from 1.
        fault: the entry.
        phase: of the round.
    """

    number: int
    fault: Fault
    phase: str


@dataclass(frozen=True)
class FaultList:
    """A list that fits its experiment.

    Attributes:
        source: the file.
        text: its content, as it was read.
        faults: the entries; entry n of the file is at n - 1.
        seed: of the experiment.
        labels: of all sites, in roster order; empty before they are known.
        protocol: whether the protocol runs.
        rounds: what has been found out about a round, to be found again.
    """

    source: str
    text: str
    faults: tuple[Fault, ...]
    seed: int
    labels: tuple[str, ...] = ()
    protocol: bool = True
    rounds: dict[int, dict[str, list[Strike]]] = field(default_factory=dict, compare=False, repr=False)

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
        secure = experiment.secure_aggregation
        return cls(
            source, text, faults, experiment.seed, protocol=secure.enabled and secure.engine == "protocol"
        )

    def among(self, labels: Sequence[str]) -> FaultList:
        """The same list, now that the sites are known; `ConfigError` where it names one that does not exist."""
        for number, fault in enumerate(self.faults, start=1):
            for label in fault.named:
                if label not in labels:
                    known = ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
                    raise ConfigError(
                        f"there is no site {label!r}; there are {known}",
                        source=self.source,
                        key=f"fault {number}: {'site' if fault.site else 'sites'}",
                    )
        return replace(self, labels=tuple(labels), rounds={})

    def strikes(self, round_number: int) -> dict[str, list[Strike]]:
        """All that strikes in a round, by label and in the order of the list."""
        if round_number not in self.rounds:
            found: dict[str, list[Strike]] = {}
            for number, fault in enumerate(self.faults, start=1):
                for label, phase in self._at(number, fault, round_number):
                    found.setdefault(label, []).append(Strike(number, fault, phase))
            self.rounds[round_number] = found
        return self.rounds[round_number]

    def sites(self, number: int, round_number: int) -> list[str]:
        """At which sites entry `number` (from 1) strikes in this round, in roster order."""
        return [label for label, _ in self._at(number, self.faults[number - 1], round_number)]

    def at(self, label: str, round_number: int, attempt: int, phase: str) -> tuple[int, Fault] | None:
        """The first entry, with its number, that strikes here; where two do, only the first is played."""
        for strike in self.strikes(round_number).get(label, ()):
            if strike.phase == phase and strike.fault.attempt in (None, attempt):
                return strike.number, strike.fault
        return None

    def written_out(self, rounds: int) -> str:
        """The list with nothing left to draw: one entry for each fault at one site in one round.

        Guarantees:
            It plays what this list plays.
        """
        entries = []
        for round_number in range(1, rounds + 1):
            strikes = [(s, label) for label, found in self.strikes(round_number).items() for s in found]
            for strike, label in sorted(
                strikes, key=lambda pair: (pair[0].number, self.labels.index(pair[1]))
            ):
                table = strike.fault.model_dump(include={"kind", "attempt", *OF_KIND}, exclude_unset=True)
                place = {"round": round_number, "site": label, "phase": strike.phase}
                entries.append({**place, **table, "draw": strike.fault.draw or strike.number})
        return tomli_w.dumps({"fault": entries})

    def _at(self, number: int, fault: Fault, round_number: int) -> list[tuple[str, str]]:
        """Label and phase of each site where an entry strikes in a round, in roster order."""
        if not fault.strikes(round_number):
            return []
        draw, sites = fault.draw or number, len(self.labels)
        if fault.named:
            chosen = [self.labels.index(label) for label in fault.named]
        else:
            count = max(1, round(float(fault.share or 0) * sites))
            chosen = list(_drawn(self.seed, draw, round_number, sites, count))
        if fault.chance is not None:
            lots = _stream(self.seed, draw, round_number, 1).random(sites)
            chosen = [i for i in chosen if lots[chosen[0] if fault.together else i] < fault.chance]
        phases = [fault.phase] * sites
        if fault.phase == DRAWN:
            possible = [p for p in KINDS[fault.kind] if (p == TRAINING) != self.protocol]
            lots = _stream(self.seed, draw, round_number, 2).random(sites)
            phases = [possible[int(lot * len(possible))] for lot in lots]  # type: ignore[misc]
        return [(self.labels[i], phases[i]) for i in sorted(set(chosen))]


def check_possible(fault: Fault, experiment: Experiment) -> None:
    """Raises `ValueError` where an experiment has no such round or phase."""
    last, secure = experiment.training.rounds, experiment.secure_aggregation
    latest = max(fault.round or fault.every or fault.since or 0, *fault.rounds, fault.until or 0, 0)
    if latest > last:
        raise ValueError(f"round {latest} of a run that has {last}")
    protocol = secure.enabled and secure.engine == "protocol"
    mode = "the ideal sum" if secure.enabled else "a run without a secure sum"
    if not protocol and fault.kind in LIES:
        raise ValueError(
            f'kind "{fault.kind}" is a lie within the protocol; {mode} plays {", ".join((*FAILURES, *POISONS))} only'
        )
    if fault.to and experiment.data.columns is not None and fault.to not in experiment.data.columns.classes:
        raise ValueError(f"to: there is no class {fault.to!r}")
    if fault.phase != DRAWN and protocol == (fault.phase == TRAINING):
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
        problem = first_problem(error, source, Fault)
        key = f"fault {number}: {problem.key}" if problem.key else f"fault {number}"
        raise ConfigError(problem.reason, source=source, key=key) from None


@lru_cache(maxsize=256)  # each message of a round asks
def _drawn(seed: int, number: int, round_number: int, num_sites: int, count: int) -> tuple[int, ...]:
    rng = _stream(seed, number, round_number)
    return tuple(sorted(rng.choice(num_sites, size=count, replace=False).tolist()))


def _stream(*place: int) -> np.random.Generator:
    """Draws that follow from seed, entry and round alone."""
    return np.random.Generator(np.random.PCG64(list(place)))
