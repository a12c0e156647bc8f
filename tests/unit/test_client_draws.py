"""torch's generators, begun from a key."""

import hashlib

import numpy as np
import pytest
import torch

from client.draws import drawn_from, generator_on

CPU = torch.device("cpu")
KEY = bytes(range(32))


def drawn(key: bytes) -> tuple[torch.Tensor, torch.Tensor]:
    """By a generator of its own, and by torch's."""
    with drawn_from(key, CPU):
        of_torch = torch.randn(1000)
    return torch.rand(1000, generator=generator_on(CPU, key)), of_torch


@pytest.mark.parametrize("place", range(32))
def test_what_is_drawn_follows_from_a_whole_key_and_not_from_so_few_of_its_bits_that_all_can_be_tried(
    place: int,
) -> None:
    """Each byte of a key changes all draws. A seed of torch's has 8 bytes, of which the CPU's generator takes 4."""
    other = bytes([*KEY[:place], KEY[place] ^ 1, *KEY[place + 1 :]])
    for one, another in zip(drawn(KEY), drawn(other), strict=True):
        assert (one == another).float().mean() < 0.01
    assert all(torch.equal(*pair) for pair in zip(drawn(KEY), drawn(KEY), strict=True))


def test_the_generator_is_mt19937_with_the_state_that_the_key_says() -> None:
    """By another implementation, over several turns of its 624 words; torch may lay a state out otherwise one day."""
    words = np.frombuffer(hashlib.shake_256(KEY).digest(4 * 624), dtype="<u4")
    reference = np.random.MT19937()
    reference.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    wanted = reference.random_raw(2000).astype(np.int64) & 0x7FFFFFFF
    got = torch.empty(2000, dtype=torch.int32).random_(generator=generator_on(CPU, KEY))
    assert np.array_equal(got.numpy(), wanted)


def test_the_callers_generator_is_as_it_was() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(5)
    torch.manual_seed(3)
    drawn(KEY)
    assert torch.equal(torch.rand(5), wanted)
