"""Opacities in chest-X-ray-like images of 28 x 28 pixels, from hospitals whose scanners differ.

An image is a thorax (one of nine forms: width and height of the lungs) and, if it is ill, an opacity (one of 48: its
place in a lung, its radius), read by the hospital's scanner with a gain, an offset and white noise of its own. That is
a finite mixture of normal distributions, so Bayes' rule can be computed exactly, at the site's own scanner.

The same scanners can read real images: MedMNIST's PneumoniaMNIST (Yang et al. 2023; Kermany et al. 2018), where its
file pneumoniamnist.npz is at hand.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simulations.array_sources import ArraySet, load_medmnist
from simulations.scenarios.ecg_beats import mixture
from simulations.scenarios.story import IDEAL, Floats, Story, drawn_sites, log_posterior
from tacit.data.array_schema import ArraySchema

ROWS, SIDE = 6_000, 28
CLASSES = ("normal", "opacity")
CONTRAST = 0.3  # of an opacity at its centre, in the grey of a chest from 0 to 1
BODIES = tuple(product((0.9, 1.0, 1.1), (0.9, 1.0, 1.1)))
OPACITIES = tuple(product((-1, 1), (-0.12, 0.0, 0.12), (-0.22, -0.07, 0.08, 0.22), (0.07, 0.11)))


class Scanner(NamedTuple):
    """How one hospital differs.

    Attributes:
        share: of all images.
        ill: share of its images that show an opacity.
        gain: of its scanner.
        offset: added to every pixel.
        noise: standard deviation of a pixel after the gain.
    """

    share: float
    ill: float
    gain: float
    offset: float
    noise: float


SCANNERS = {
    "university": Scanner(0.34, 0.45, 1.0, 0.0, 0.16),
    "city": Scanner(0.26, 0.30, 0.8, 0.1, 0.17),
    "children": Scanner(0.18, 0.55, 1.1, -0.1, 0.20),
    "screening": Scanner(0.14, 0.12, 0.9, 0.0, 0.16),
    "mobile": Scanner(0.08, 0.35, 0.6, 0.25, 0.15),
}


def schema() -> ArraySchema:
    """Grey from 0 to 1."""
    return ArraySchema(shape=(1, SIDE, SIDE), classes=CLASSES, center=0.5, scale=0.25)


def templates() -> tuple[Floats, Floats]:
    """All images without noise: normal (9, pixels), and with an opacity (9 * 48, pixels)."""
    v, u = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1) - 0.5
    normal, ill = [], []
    for wide, high in BODIES:
        lungs = [
            np.exp(-((((u - side * 0.22 * wide) / 0.14) ** 2 + (v / (0.33 * high)) ** 2) ** 2))
            for side in (-1, 1)
        ]
        thorax = 0.75 - 0.5 * (lungs[0] + lungs[1])
        normal.append(thorax.ravel())
        for side, across, down, radius in OPACITIES:
            distance = (u - side * 0.22 - across * 0.6) ** 2 + (v - down) ** 2
            ill.append((thorax + CONTRAST * np.exp(-distance / (2 * radius**2))).ravel())
    return np.array(normal), np.array(ill)


def generate(rows: int, seed: int) -> ArraySet:
    """See `Story.arrays`."""
    rng = np.random.default_rng(seed)
    rows = rows or ROWS
    scanners = list(SCANNERS.values())
    at = drawn_sites(rows, {name: s.share for name, s in SCANNERS.items()}, rng)
    share = np.array([s.ill for s in scanners])[at]
    y = (rng.random(rows) < share).astype(np.int64)
    normal, ill = templates()
    which = rng.integers(len(ill), size=rows)
    clean = np.where(y[:, None] == 1, ill[which], normal[which % len(normal)])
    gain, offset, noise = (np.array([s[i] for s in scanners])[at, None] for i in (2, 3, 4))
    x = gain * clean + offset + noise * rng.normal(size=clean.shape)
    likelihood = np.empty((rows, 2))
    for i, scanner in enumerate(scanners):
        for c, forms in enumerate((normal, ill)):
            read = scanner.gain * forms[None] + scanner.offset
            likelihood[at == i, c] = mixture(x[at == i], read, scanner.noise)[:, 0]
    truth = log_posterior(likelihood, np.column_stack([1 - share, share]))
    images = x.reshape(rows, 1, SIDE, SIDE).astype(np.float32)
    return ArraySet(images, y, schema(), np.array(list(SCANNERS))[at], truth=truth)


def real_hospitals(folder: Path, seed: int) -> ArraySet:
    """PneumoniaMNIST, divided among the same hospitals and read by their scanners' gain and offset.

    Raises:
        DataError: `folder` has no pneumoniamnist.npz, or it is none of MedMNIST's.
    """
    images = load_medmnist(folder / "pneumoniamnist.npz", ("normal", "pneumonia"))
    scanners = list(SCANNERS.values())
    rng = np.random.default_rng(seed)
    at = drawn_sites(len(images.y), {name: s.share for name, s in SCANNERS.items()}, rng)
    gain, offset = (np.array([s[i] for s in scanners])[at].reshape(-1, 1, 1, 1) for i in (2, 3))
    x = (gain * images.x + offset).astype(np.float32)
    return ArraySet(x, images.y, images.schema, np.array(list(SCANNERS))[at])


STORY = Story(
    name="chest_xray",
    field="healthcare",
    title="Is there an opacity in the chest, when every hospital's scanner reads another grey?",
    data="generated: one record is one image of 28 x 28 pixels; or PneumoniaMNIST, where its file is at hand",
    sites="five hospitals; gain, offset and noise of the scanner, 12 to 55 % of images with an opacity",
    measured="AUROC on all held-out images",
    truth="Bayes' rule over all forms of an image, exact: its AUROC is the best achievable (generated images)",
    metric="auroc",
    ci=("data.rows=1000", "training.rounds=3", "checkpoints.keep=1", IDEAL),
    arrays=generate,
)
