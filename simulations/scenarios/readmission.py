"""Readmission within 30 days, at hospitals that code the same illness differently.

A patient has a diagnosis c, a number of comorbidities k, and features z. With the coefficients below

    P(readmitted | c, k, z) = sigmoid(b0 + effect_c + 0.30 k + f(z, c)).

Three hospitals write c in ICD-10, two in ICD-9, one only as a chapter, which lumps two lung diseases together; two
hospitals stop counting comorbidities at three. What is written down determines the best possible prediction: the
mean of that probability over all (c, k) that would have been written down the same way. c and k are drawn
independently of z, so this mean is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulations.scenarios.story import IDEAL, Floats, Story, drawn_sites, sigmoid
from tacit.data.schema import CategoricalColumn, Column, NumericColumn, Schema

if TYPE_CHECKING:
    from pandas import DataFrame

ROWS = 16_000
EFFECTS = np.array([1.1, 0.7, -0.5, 0.0, -1.1, -0.4])  # of the diagnoses below, on the logit
CODES = {
    "icd10": (
        "I50",
        "J44",
        "J18",
        "E11",
        "S72",
        "Z51",
    ),  # heart failure, COPD, pneumonia, diabetes, hip, other
    "icd9": ("428", "496", "486", "250", "820", "V58"),
    "chapter": ("circulatory", "respiratory", "respiratory", "endocrine", "injury", "other"),
}
MOST = 8  # comorbidities that anybody has
INTERCEPT = -2.9


class Hospital(NamedTuple):
    """How one hospital differs.

    Attributes:
        share: of all patients.
        codes: how it writes a diagnosis.
        cap: the number of comorbidities at which it stops counting.
        age: mean age in years.
        comorbidities: mean number.
        mix: relative frequency of the six diagnoses.
    """

    share: float
    codes: str
    cap: int
    age: float
    comorbidities: float
    mix: tuple[float, ...]


HOSPITALS = {
    "university": Hospital(0.30, "icd10", MOST, 62, 2.2, (2, 1, 1, 2, 1, 4)),
    "city": Hospital(0.22, "icd10", 3, 66, 1.8, (3, 2, 2, 2, 2, 3)),
    "heart-centre": Hospital(0.16, "icd10", MOST, 68, 2.6, (7, 1, 1, 1, 0.3, 1)),
    "county": Hospital(0.14, "icd9", 3, 72, 2.0, (3, 3, 3, 2, 3, 2)),
    "lung-clinic": Hospital(0.10, "icd9", MOST, 64, 1.6, (1, 6, 5, 1, 0.3, 1)),
    "rural": Hospital(0.08, "chapter", MOST, 75, 1.9, (3, 2, 3, 2, 4, 2)),
}


def schema() -> Schema:
    """Constants are round figures of hospital medicine; the categories are all codes in use."""

    def number(center: float, scale: float, low: float, high: float) -> NumericColumn:
        return NumericColumn(kind="numeric", center=center, scale=scale, range=(low, high))

    codes = tuple(dict.fromkeys(code for system in CODES.values() for code in system))
    columns: dict[str, Column] = {
        "diagnosis": CategoricalColumn(kind="categorical", categories=codes),
        "comorbidities": number(2.0, 2.0, 0.0, MOST),
        "age": number(65.0, 15.0, 18.0, 100.0),
        "days": NumericColumn(kind="numeric", transform="log", range=(0.0, 60.0)),
        "prior_admissions": number(1.0, 1.5, 0.0, 12.0),
        "haemoglobin": number(12.5, 2.0, 5.0, 20.0),
        "emergency": number(0.5, 0.5, 0.0, 1.0),
    }
    return Schema(label="readmitted", columns=columns, site="hospital")


def generate(rows: int, seed: int) -> tuple[DataFrame, Schema]:
    """See `Story.table`."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    rows = rows or ROWS
    hospitals = list(HOSPITALS.values())
    at = drawn_sites(rows, {name: h.share for name, h in HOSPITALS.items()}, rng)
    mixes = np.array([np.array(h.mix) / sum(h.mix) for h in hospitals])
    counts = np.array([_poisson(h.comorbidities) for h in hospitals])
    diagnosis, comorbidities = (_drawn(table[at], rng) for table in (mixes, counts))
    z = {
        "age": rng.normal(np.array([h.age for h in hospitals])[at], 12).clip(18, 100).round(),
        "days": np.exp(rng.normal(1.5, 0.7, rows)).round(),
        "prior_admissions": rng.poisson(0.8, rows).astype(float),
        "haemoglobin": rng.normal(12.8, 1.9, rows).clip(5, 20).round(1),
        "emergency": (rng.random(rows) < 0.55).astype(float),
    }
    logits = _logits(z)  # (rows, diagnoses, comorbidities)
    readmitted = rng.random(rows) < sigmoid(logits[np.arange(rows), diagnosis, comorbidities])
    system = np.array([list(CODES).index(h.codes) for h in hospitals])[at]
    written = np.array(list(CODES.values()))[system, diagnosis]
    counted = np.minimum(comorbidities, np.array([h.cap for h in hospitals])[at])
    frame = pd.DataFrame(
        {"hospital": np.array(list(HOSPITALS))[at], "diagnosis": written, "comorbidities": counted, **z}
    )
    same = np.array(list(CODES.values()))[system] == written[:, None]
    capped = np.minimum(np.arange(MOST + 1), np.array([h.cap for h in hospitals])[at][:, None])
    weights = (mixes[at] * same)[:, :, None] * (counts[at] * (capped == counted[:, None]))[:, None, :]
    truth = (weights * sigmoid(logits)).sum((1, 2)) / weights.sum((1, 2))
    return frame.assign(readmitted=readmitted.astype(int), truth=truth), schema()


def _logits(z: dict[str, Floats]) -> Floats:
    """Logit of readmission for each row, diagnosis and number of comorbidities."""
    known = (
        0.025 * (z["age"] - 65)
        + 0.45 * z["prior_admissions"]
        + 0.5 * z["emergency"]
        - 0.18 * (z["haemoglobin"] - 12.5)
        + 0.35 * np.abs(np.log1p(z["days"]) - 1.6)  # sent home too early, or very ill
    )
    old_heart = np.outer(z["age"] > 75, np.arange(len(EFFECTS)) == 0) * 0.7
    of_diagnosis = known[:, None] + EFFECTS + old_heart
    logits: Floats = INTERCEPT + of_diagnosis[:, :, None] + 0.30 * np.arange(MOST + 1)
    return logits


def _poisson(mean: float) -> Floats:
    """Probabilities of 0 to MOST, of a Poisson distribution that ends there."""
    from scipy.stats import poisson

    cut: Floats = poisson.pmf(np.arange(MOST + 1), mean)
    cut /= cut.sum()
    return cut


def _drawn(probabilities: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """One position for each row of probabilities."""
    position = (probabilities.cumsum(1) < rng.random((len(probabilities), 1))).sum(1)
    drawn: NDArray[np.int64] = np.minimum(position, probabilities.shape[1] - 1)
    return drawn


STORY = Story(
    name="readmission",
    field="healthcare",
    title="Who comes back within 30 days, when hospitals code the same illness differently?",
    data="generated: one row is one stay",
    sites="six hospitals; ICD-10, ICD-9 or chapters only, comorbidities counted to the end or to three, other patients",
    measured="AUROC on all held-out stays",
    truth="the probability given what was written down, exact: its AUROC is the best achievable",
    metric="auroc",
    ci=("data.rows=3000", "training.rounds=6", "checkpoints.keep=1", IDEAL),
    table=generate,
)
