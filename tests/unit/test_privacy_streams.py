"""The streams of a cohort's members: the same alone and together, and none twice."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.privacy.noise import NONCE_BYTES, SeededKeys, Stream, SystemKeys
from tacit.privacy.streams import Normals, Portions, nonce_of, stream_of

KEYS = SeededKeys(3)


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(0, 3))
def test_I15_what_a_member_reads_is_the_same_alone_and_among_others(counts, number):
    members = tuple(f"site-{i}" for i in range(len(counts)))
    together = Portions(members, np.array(counts, dtype=np.int64)).read(KEYS, "poisson", number)
    alone = [
        stream_of(KEYS, "poisson", m, number).words(n) for m, n in zip(members, counts, strict=True) if n
    ]
    assert together.tolist() == [int(word) for words in alone for word in words]


def test_I15_no_two_members_read_the_same_part_of_a_stream():
    for keys in (KEYS, SystemKeys()):
        words = Portions.even(tuple(f"site-{i}" for i in range(50)), 20).read(keys, "rounding", 1)
        assert len(set(words.tolist())) == 50 * 20
        normals = Normals(keys, "noise", [f"site-{i}" for i in range(5)], 1)
        drawn = np.concatenate([normals.draw(7, 1.0), normals.draw(7, 1.0)])
        assert drawn.shape == (10, 7)
        assert all(not np.isclose(a, b).any() for a, b in combinations(drawn, 2))


def test_normals_of_seeded_keys_are_those_of_each_members_own_stream():
    sites = ("a", "b", "c")
    normals, alone = Normals(KEYS, "noise", sites, 4), [stream_of(KEYS, "noise", s, 4) for s in sites]
    for _ in range(2):
        expected = np.stack([stream.gaussian(11, 0.5) for stream in alone])
        np.testing.assert_array_equal(normals.draw(11, 0.5), expected)


def test_I15_keys_of_the_operating_system_give_other_numbers_each_time():
    portions = Portions.even(("a", "b"), 4)
    assert not np.array_equal(*(portions.read(SystemKeys(), "poisson", 1) for _ in range(2)))
    assert stream_of(SystemKeys(), "noise", "a", 1).bytes(16) != stream_of(
        SystemKeys(), "noise", "a", 1
    ).bytes(16)


def test_a_nonce_is_a_members_own_and_its_counter_never_reaches_anothers():
    assert len({nonce_of(f"client-{i}") for i in range(10_000)}) == 10_000
    with pytest.raises(ValueError, match="nonce"):
        Stream(bytes(32), bytes(NONCE_BYTES - 1))
    used = Stream(bytes(32))
    used._left = 8
    used.words(1)
    with pytest.raises(RuntimeError, match="used up"):
        used.words(1)
