"""The clip norm goes where the target quantile of the updates' norms is, by noised bits alone."""

import math

import numpy as np
import pytest

from tacit.config import ClientPrivacy
from tacit.errors import Refused
from tacit.privacy.adaptive import clip_text, clip_value, next_clip
from tacit.privacy.discrete import add_noise
from tacit.privacy.noise import SeededKeys, Stream
from tacit.secagg.client_encoder import ClientLevelEncoder
from tacit.update import Aggregate, Layout, LocalUpdate

KEYS = SeededKeys(20261124)
NUM_CLIENTS = 100
C_INT = 2**16


def settings(quantile: float = 0.5, **changes: object) -> ClientPrivacy:
    return ClientPrivacy.model_validate(
        {"epsilon": 1.0, "delta": 1e-3, "target_quantile": quantile, "clip_range": (1e-4, 1e4), **changes}
    )


def noised_share(norms: np.ndarray, clip: float, number: int, z: float = 1.0) -> float:
    """What a server learns in one round: the share of the bits in a sum of real vectors, with all of its noise."""
    encoder = ClientLevelEncoder(Layout((("w", (2,)),), (), "bit"), clip, C_INT)
    uniforms = Stream(KEYS.key("rounding", number)).uniform
    vectors = [
        encoder.encode(LocalUpdate({"w": np.array([0.0, n])}, 1.0, {}), uniforms).values for n in norms
    ]
    noise = Stream(KEYS.key("noise", number))
    total = Aggregate(add_noise(np.sum(vectors, axis=0), z * C_INT, noise), len(norms))
    below = encoder.decode(total, z * C_INT).below_clip
    assert below is not None
    return below


@pytest.mark.parametrize(("start", "quantile"), [(0.01, 0.5), (100.0, 0.5), (0.01, 0.8), (100.0, 0.3)])
def test_I16_the_clip_norm_converges_to_the_target_quantile_within_a_hundred_rounds(
    start: float, quantile: float
) -> None:
    norms = np.exp(0.5 * Stream(KEYS.key("norms")).gaussian(NUM_CLIENTS, 1.0))
    clip, clips = start, []
    for number in range(100):
        clip = next_clip(clip, noised_share(norms, clip, number), settings(quantile))
        clips.append(clip)
    late = math.exp(np.mean(np.log(clips[-15:])))
    assert abs(np.mean(norms <= late) - quantile) <= 0.05


def test_I16_the_clip_norm_rises_while_too_many_updates_are_cut_and_falls_while_too_few_are() -> None:
    made = settings(0.5)
    assert next_clip(1.0, 0.2, made) == pytest.approx(math.exp(0.2 * 0.3))
    assert next_clip(1.0, 0.9, made) == pytest.approx(math.exp(-0.2 * 0.4))
    assert next_clip(1.0, 0.5, made) == 1.0


@pytest.mark.parametrize("below", [-50.0, 50.0])
def test_noise_beyond_every_share_moves_the_clip_norm_no_further_than_a_share_can(below: float) -> None:
    assert math.exp(-0.1) <= next_clip(1.0, below, settings()) <= math.exp(0.1)
    assert next_clip(1e4, -50.0, settings()) == 1e4
    assert next_clip(1e-4, 50.0, settings()) == 1e-4


def test_a_clip_norm_has_one_spelling() -> None:
    for value in (0.1, 1.0, 1e-3, 1 / 3, 123456.789):
        assert clip_value(clip_text(value)) == value
    for text in ("", "1", "1.00", "+1.0", " 1.0", "1e-1", "nan", "inf", "0.0", "-1.0", "1_0.0", "x" * 1000):
        with pytest.raises(Refused) as error:
            clip_value(text)
        assert error.value.reason == "clip"
