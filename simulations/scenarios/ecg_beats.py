"""Heart beats in a one-lead electrocardiogram: normal, ventricular, atrial, or with a bundle branch block.

A beat of class y is template_y, moved by one of seven shifts and stretched by one of three widths, times one of three
amplitudes, all equally likely, plus white noise of the recorder's own strength; recorders also differ in gain and
baseline. That is a finite mixture of normal distributions, so Bayes' rule can be computed exactly: the best possible
prediction averages the density over all 63 forms that a beat of each class can take, at the site's gain and noise.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np

from simulations.array_sources import ArraySet
from simulations.scenarios.story import IDEAL, Floats, Story, drawn_sites, log_posterior
from tacit.data.array_schema import ArraySchema

ROWS, SAMPLES = 8_000, 96  # 0.77 s at 125 a second
CLASSES = ("normal", "ventricular", "atrial", "block")
# (time in seconds from the R peak, width in seconds, height in millivolts) of the bumps of each beat
WAVES = {
    "normal": (
        (-0.17, 0.025, 0.15), (-0.025, 0.010, -0.12), (0.0, 0.012, 1.0), (0.028, 0.011, -0.22), (0.22, 0.05, 0.3),
    ),
    "ventricular": ((-0.02, 0.045, 0.9), (0.08, 0.05, -0.5), (0.24, 0.06, -0.3)),
    "atrial": (
        (-0.11, 0.02, 0.12), (-0.025, 0.010, -0.12), (0.0, 0.012, 0.9), (0.028, 0.011, -0.22), (0.22, 0.05, 0.28),
    ),
    "block": ((-0.17, 0.025, 0.14), (-0.01, 0.022, 0.75), (0.035, 0.02, 0.5), (0.24, 0.06, -0.15)),
}  # fmt: skip
FORMS = tuple(product((-0.024, -0.016, -0.008, 0.0, 0.008, 0.016, 0.024), (0.9, 1.0, 1.1), (0.8, 1.0, 1.2)))


class Recorder(NamedTuple):
    """How one site differs.

    Attributes:
        share: of all beats.
        gain: of its recorder.
        baseline: added to every sample, in millivolts.
        noise: standard deviation of a sample, in millivolts after the gain.
        mix: relative frequency of the classes.
    """

    share: float
    gain: float
    baseline: float
    noise: float
    mix: tuple[float, ...]


RECORDERS = {
    "rhythm-clinic": Recorder(0.30, 1.0, 0.0, 0.35, (4, 3, 2, 2)),
    "hospital": Recorder(0.30, 1.1, 0.05, 0.45, (7, 1, 1, 1)),
    "practice": Recorder(0.20, 0.9, -0.1, 0.55, (9, 0.5, 0.5, 0.3)),
    "pacemaker-clinic": Recorder(0.12, 1.0, 0.1, 0.4, (3, 1, 0.5, 4)),
    "wearable": Recorder(0.08, 0.7, 0.0, 0.65, (9, 0.4, 0.8, 0.2)),
}


def schema() -> ArraySchema:
    """One lead in millivolts."""
    return ArraySchema(shape=(1, SAMPLES), classes=CLASSES, center=0.0, scale=0.5)


def templates() -> Floats:
    """Every form of every class, in millivolts, shape (classes, forms, SAMPLES)."""
    t = (np.arange(SAMPLES) - 36) / 125.0
    beats = [
        [
            amplitude * sum(h * np.exp(-(((t - shift) / width - c) ** 2) / (2 * w**2)) for c, w, h in waves)
            for shift, width, amplitude in FORMS
        ]
        for waves in WAVES.values()
    ]
    return np.array(beats)


def generate(rows: int, seed: int) -> ArraySet:
    """See `Story.arrays`."""
    rng = np.random.default_rng(seed)
    rows = rows or ROWS
    recorders = list(RECORDERS.values())
    at = drawn_sites(rows, {name: r.share for name, r in RECORDERS.items()}, rng)
    mixes = np.array([np.array(r.mix) / sum(r.mix) for r in recorders])
    y = (mixes[at].cumsum(1) < rng.random((rows, 1))).sum(1).clip(max=len(CLASSES) - 1).astype(np.int64)
    beats = templates()
    gain, baseline, noise = (np.array([r[i] for r in recorders])[at, None] for i in (1, 2, 3))
    clean = beats[y, rng.integers(len(FORMS), size=rows)]
    x = gain * clean + baseline + noise * rng.normal(size=clean.shape)
    likelihood = np.empty((rows, len(CLASSES)))
    for i, recorder in enumerate(recorders):
        likelihood[at == i] = mixture(x[at == i], recorder.gain * beats + recorder.baseline, recorder.noise)
    truth = log_posterior(likelihood, mixes[at])
    sites = np.array(list(RECORDERS))[at]
    return ArraySet(x[:, None].astype(np.float32), y, schema(), sites, truth=truth)


def mixture(x: Floats, forms: Floats, noise: float) -> Floats:
    """Log density of records under each class, a class being the even mixture of its forms plus white noise.

    Args:
        x: shape (rows, numbers).
        forms: shape (classes, forms, numbers).
        noise: standard deviation of each number.

    Returns:
        Shape (rows, classes), up to a constant per row.
    """
    from scipy.special import logsumexp

    flat = forms.reshape(-1, forms.shape[-1])
    # |x - f|^2 without |x|^2, which is the same for all classes
    exponent = (x @ flat.T - 0.5 * (flat**2).sum(1)) / noise**2
    result: Floats = logsumexp(exponent.reshape(-1, *forms.shape[:2]), axis=2) - np.log(forms.shape[1])
    return result


STORY = Story(
    name="ecg_beats",
    field="healthcare",
    title="Which kind of heart beat is it, when every site has another recorder and other patients?",
    data="generated: one record is one beat, 96 samples of one lead",
    sites="five sites; gain, baseline and noise of the recorder, and how common each rhythm is",
    measured="AUROC, the mean over four classes, on all held-out beats",
    truth="Bayes' rule over all forms of a beat, exact: its AUROC is the best achievable",
    metric="auroc",
    ci=("data.rows=1500", "training.rounds=4", "checkpoints.keep=1", IDEAL),
    arrays=generate,
)
