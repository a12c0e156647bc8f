"""What `dp_ftrl` adds, over many coordinates: covariance over rounds, and the error of the model at equal epsilon."""

from pathlib import Path

import numpy as np
import pytest

from server.noise import FILE, NoiseFile
from tacit import config
from tacit.privacy.banded import UNIT, coefficients, inverse
from tacit.privacy.central import CentralNoise, NoiseMemory, NoNoise
from tacit.privacy.plan import PrivacyPlan
from tacit.update import Aggregate
from tests.unit.test_banded import dense, prefix_sums
from tests.unit.test_correlated_noise import FTRL, SITES

SIZE = 20_000  # coordinates: as many independent draws of the whole run


def noise_of(folder: Path | None, rounds: int, *overrides: str) -> tuple[NoNoise, np.ndarray]:
    """The noise of a run, shape (rounds, SIZE); with a folder, of a server that is started again before each round."""
    experiment = config.loads(FTRL + SITES, overrides=(f"training.rounds={rounds}", *overrides))
    plan, zeros = PrivacyPlan.of(experiment), np.zeros(SIZE, dtype=np.int64)
    out, memory = [], NoiseMemory()
    for number in range(1, rounds + 1):
        memory = memory if folder is None else NoiseFile(folder / FILE, "a run", durable=False)
        noise = CentralNoise.of(experiment, plan, lambda memory=memory: memory)
        released = noise.added(Aggregate(zeros, 3), number)
        out.append(released.total.values)
        noise.keep(released)
    return noise, np.array(out, dtype=np.float64)


@pytest.mark.parametrize("settings", [(), ("strategy.server_momentum=0.9",)], ids=["plain", "momentum"])
def test_the_noise_of_all_rounds_has_the_covariance_of_C_over_restarts(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    momentum, rounds = (0.9 if settings else 0.0), 10
    noise, drawn = noise_of(tmp_path, rounds, *settings)
    lower = np.linalg.inv(dense(coefficients(4, momentum), rounds)) * noise.scale  # type: ignore[attr-defined]
    expected = lower @ lower.T
    found = drawn @ drawn.T / SIZE
    std = np.sqrt(np.diag(expected))
    # A product of normals of correlation r has variance 1 + r^2: five standard errors.
    bound = 5 * np.sqrt(1 + (expected / np.outer(std, std)) ** 2) / np.sqrt(SIZE)
    assert (np.abs(found - expected) / np.outer(std, std) <= bound).all()
    assert np.abs(drawn.mean(axis=1) / std).max() < 5 / np.sqrt(SIZE)
    assert std.max() == pytest.approx(noise.std, rel=1e-5), "what a sum is tested by"


def test_at_equal_epsilon_the_error_of_prefix_sums_is_as_much_smaller_as_theory_says() -> None:
    """Against independent noise where members take the same turns, and where all of them are in all rounds."""
    rounds = 64

    def error(drawn: np.ndarray) -> float:
        return float(np.sqrt((np.cumsum(drawn, axis=0) ** 2).mean()))

    turns = ("strategy.min_separation=12", "secure_aggregation.enabled=false")
    _, ours = noise_of(None, rounds, "strategy.bands=12", *turns)
    _, same_turns = noise_of(None, rounds, "strategy.bands=1", *turns)
    _, always = noise_of(None, rounds, "strategy.name=fedavg")
    c = coefficients(12) / UNIT
    theory = np.linalg.norm(c) * np.linalg.norm(prefix_sums(rounds) @ dense(inverse(12, 0.0, rounds), rounds))
    theory /= np.linalg.norm(prefix_sums(rounds))
    assert error(ours) / error(same_turns) == pytest.approx(theory, rel=0.03)
    assert theory < 0.6
    assert error(ours) < 0.3 * error(always), (
        "and for those who are in all rounds, by how often they pay, too"
    )
