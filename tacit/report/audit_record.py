"""The record of a privacy audit: what each attack measured, beside what was claimed. Content of audit.json.

Guarantees:
    An attack that measured more than was claimed is never called "within".
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import AwareDatetime, Field

from tacit.report.record import Count, Epsilon, Number, Part, Seconds, Unit

Method = Literal["one-run", "clients", "membership"]
Rate = Annotated[float, Field(ge=0, le=1)]


class Attack(Part):
    """One attack and what it proves.

    Attributes:
        method: which attack; docs/audit-privacy.md says what each assumes.
        unit: what the claim that it is held against protects.
        claim: the upper bound on epsilon that the run claims; infinite where it claims nothing.
        delta: of claim and lower bound.
        canaries: how many coins were tossed.
        guesses: how many of them were guessed; the number was fixed beforehand.
        correct: how many guesses were right.
        lower_bound: epsilon is at least this, at `confidence`.
        confidence: of the lower bound.
        estimate: epsilon if the scores are Gaussian; an estimate, no bound.
        scores_in: scores of the canaries that were in.
        scores_out: of those that were not.
        view: what the attacker sees.
        seconds: how long it took.
    """

    method: Method
    unit: Unit
    claim: Epsilon
    delta: Rate
    canaries: Count
    guesses: Count
    correct: Count
    lower_bound: Epsilon
    confidence: Rate
    estimate: Number = None
    scores_in: tuple[float, ...] = ()
    scores_out: tuple[float, ...] = ()
    view: str = ""
    seconds: Seconds = 0.0

    @property
    def crossed(self) -> bool:
        """Whether more leaks than is claimed."""
        return self.lower_bound > self.claim

    @property
    def verdict(self) -> str:
        """One or two words."""
        if math.isinf(self.claim):
            return "no claim"
        return "CROSSED" if self.crossed else "within"

    def roc(self) -> tuple[list[float], list[float]]:
        """False and true positive rates of calling a score "in", at every threshold, rising."""
        scores = np.array([*self.scores_in, *self.scores_out])
        member = np.arange(scores.size) < len(self.scores_in)
        order = np.argsort(-scores, kind="stable")
        last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are called alike
        hits, alarms = (np.append(0, np.cumsum(who[order])[last]) for who in (member, ~member))
        return (
            (alarms / max(1, len(self.scores_out))).tolist(),
            (hits / max(1, len(self.scores_in))).tolist(),
        )

    @property
    def auc(self) -> float:
        """Area under the curve: how probable it is that a canary that is in scores above one that is out."""
        alarms, hits = self.roc()
        return float(np.trapezoid(hits, alarms))

    def hits_at(self, alarms: float) -> float:
        """True positive rate at a false positive rate of at most `alarms`."""
        found = [hit for alarm, hit in zip(*self.roc(), strict=True) if alarm <= alarms]
        return max(found)


class Image(Part):
    """A record as somebody sees it.

    Attributes:
        title: whose eyes.
        values: the features, in the model's own scale.
        similarity: correlation with the original, between -1 and 1; None for the original.
        explanation: one sentence.
    """

    title: str
    values: tuple[float, ...]
    similarity: Number = None
    explanation: str = ""


class Inversion(Part):
    """One record, rebuilt from an update that was made from it alone.

    Attributes:
        attack: how it was rebuilt.
        shape: rows and columns to draw the features in.
        images: the original first.
        seconds: how long it took.
    """

    attack: str
    shape: tuple[Count, Count]
    images: Annotated[tuple[Image, ...], Field(min_length=1)]
    seconds: Seconds = 0.0


class AuditRecord(Part):
    """One audit of one experiment.

    Attributes:
        name: of the experiment.
        started: when.
        seed: of the coins: the same one gives the same canaries, though not the same noise.
        sites: how many.
        parameters: of the model.
        rounds: of each training.
        attacks: in the order in which they were made.
        inversion: None where it was not asked for.
        skipped: what was asked for and not possible, one line each.
        versions: software to version.
    """

    name: str
    started: AwareDatetime
    seed: Count
    sites: Count
    parameters: Count
    rounds: Count
    attacks: tuple[Attack, ...] = ()
    inversion: Inversion | None = None
    skipped: tuple[str, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def crossed(self) -> tuple[Attack, ...]:
        """Attacks that have measured more than is claimed."""
        return tuple(attack for attack in self.attacks if attack.crossed)
