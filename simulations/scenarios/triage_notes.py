"""Notes that a nurse writes at triage: is the patient urgent? Sites write the same finding in other words.

A patient is urgent with the site's own frequency. Each of the findings below is there with a probability that depends
on urgency alone, independently of the others. One that is there is written down with probability 0.9, one that is not
is denied ("no fever") with the site's own probability. What is written comes in random order between words that say
nothing. So each finding of a note is written, denied or not mentioned, independently given urgency, and Bayes' rule is
exact: log odds of the prior, plus one log ratio for each finding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simulations.scenarios.story import IDEAL, Story, drawn_sites, sigmoid
from tacit.data.schema import Schema, TextColumn

if TYPE_CHECKING:
    from pandas import DataFrame

ROWS = 10_000
WRITTEN = 0.9
# in full, in short, how often it is there in the urgent, and in the others
FINDINGS = (
    ("chest pain", "cp", 0.34, 0.10),
    ("short of breath", "sob", 0.36, 0.09),
    ("sweating", "diaphoretic", 0.22, 0.06),
    ("faint", "syncope", 0.16, 0.04),
    ("confused", "gcs down", 0.18, 0.02),
    ("weakness of one arm", "arm paresis", 0.12, 0.02),
    ("stiff neck", "meningism", 0.08, 0.02),
    ("fast pulse", "tachy", 0.40, 0.14),
    ("low pressure", "hypotensive", 0.24, 0.04),
    ("high fever", "pyrexia", 0.24, 0.14),
    ("bleeding", "haem", 0.16, 0.07),
    ("severe pain", "vas 9", 0.30, 0.12),
    ("vomiting", "emesis", 0.24, 0.18),
    ("cough", "tussis", 0.14, 0.24),
    ("sore throat", "pharyngitis", 0.03, 0.16),
    ("runny nose", "coryza", 0.03, 0.15),
    ("twisted ankle", "ankle sprain", 0.01, 0.12),
    ("rash", "exanthem", 0.06, 0.12),
    ("wants prescription", "rx only", 0.01, 0.10),
    ("back ache", "lumbago", 0.07, 0.16),
    ("walked in", "ambulant", 0.30, 0.62),
)
FILLER = (
    "pt", "seen", "today", "by", "nurse", "reports", "since", "morning", "evening", "yesterday", "about", "came",
    "with", "family", "says", "also", "at", "home",
)  # fmt: skip


class Desk(NamedTuple):
    """How one site differs.

    Attributes:
        share: of all notes.
        urgent: share of urgent patients.
        short: whether it writes in short.
        denied: how often a finding that is not there is denied.
        filler: mean number of words that say nothing.
    """

    share: float
    urgent: float
    short: bool
    denied: float
    filler: float


DESKS = {
    "emergency": Desk(0.32, 0.35, True, 0.16, 4.0),
    "hospital": Desk(0.26, 0.25, False, 0.12, 6.0),
    "out-of-hours": Desk(0.20, 0.15, False, 0.10, 8.0),
    "telephone": Desk(0.14, 0.10, False, 0.20, 9.0),
    "air-rescue": Desk(0.08, 0.70, True, 0.08, 2.0),
}


def schema() -> Schema:
    """A note is its words, hashed; nothing is learnt from the notes to read them."""
    text = TextColumn(column="note", tokens="words", vocabulary=1024, length=40)
    return Schema(label="urgent", text=text, site="desk")


def generate(rows: int, seed: int) -> tuple[DataFrame, Schema]:
    """See `Story.table`."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    rows = rows or ROWS
    desks = list(DESKS.values())
    at = drawn_sites(rows, {name: d.share for name, d in DESKS.items()}, rng)
    prior, denied, filler = (np.array([d[i] for d in desks])[at] for i in (1, 3, 4))
    urgent = rng.random(rows) < prior
    rates = np.array([f[2:] for f in FINDINGS]).T  # of the urgent, of the others
    present = rng.random((rows, len(FINDINGS))) < np.where(urgent[:, None], *rates[:, None])
    told = rng.random(present.shape) < np.where(present, WRITTEN, denied[:, None])
    # (of each finding) log P(what is written of it | urgent) - log P(the same | not urgent)
    there, absent = WRITTEN * rates, denied[:, None, None] * (1 - rates)
    likelihood = np.where(
        (told & present)[:, None], there, np.where(told[:, None], absent, 1 - there - absent)
    )
    ratios = np.log(likelihood[:, 0]) - np.log(likelihood[:, 1])
    truth = sigmoid(np.log(prior / (1 - prior)) + ratios.sum(1))
    notes = []
    for i in range(rows):
        phrases = [FINDINGS[f][desks[at[i]].short] for f in np.flatnonzero(told[i])]
        written = [
            p if present[i, f] else f"no {p}" for p, f in zip(phrases, np.flatnonzero(told[i]), strict=True)
        ]
        written += rng.choice(FILLER, rng.poisson(filler[i])).tolist()
        notes.append(" ".join(written[k] for k in rng.permutation(len(written))))
    frame = pd.DataFrame({"desk": np.array(list(DESKS))[at], "note": notes, "urgent": urgent.astype(int)})
    return frame.assign(truth=truth), schema()


STORY = Story(
    name="triage_notes",
    field="healthcare",
    title="Who is urgent, from a few words that every desk writes in its own shorthand?",
    data="generated: one row is one note",
    sites="five desks; in full or in short, how often a finding is denied, how many patients are urgent",
    measured="AUROC on all held-out notes",
    truth="Bayes' rule over what is written, denied or not mentioned, exact: its AUROC is the best achievable",
    metric="auroc",
    ci=("data.rows=1500", "training.rounds=4", "checkpoints.keep=1", IDEAL),
    table=generate,
)
