"""The random stream, its layout and its keys."""

from __future__ import annotations

import math
import os
import pickle
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tacit.privacy.noise import SeededKeys, Stream, SystemKeys
from tacit.privacy.normals import gaussians
from tacit.secagg.prg import keystream

KEY = bytes(range(32))


def test_stream_is_the_AES_CTR_stream_of_its_key_read_once_from_the_start() -> None:
    stream = Stream(KEY)
    parts = [stream.bytes(n) for n in (0, 1, 15, 300_000, 7)]
    assert b"".join(parts) == keystream(KEY, 300_023).tobytes()


def test_uniform_is_the_upper_53_bits_of_each_little_endian_word() -> None:
    words = struct.unpack("<6Q", keystream(KEY, 48).tobytes())
    drawn = Stream(KEY).uniform((2, 3))
    assert drawn.shape == (2, 3) and drawn.dtype == np.float64
    assert drawn.ravel().tolist() == [(word >> 11) / 2**53 for word in words]


@pytest.mark.parametrize("n", [1, 2, 5, 16384, 16385, 40_001])
def test_gaussian_is_the_documented_function_of_the_stream(n: int) -> None:
    """Second implementation: plain Python, block by block, four Box-Muller draws an element."""
    stream, expected = Stream(KEY), []
    for start in range(0, n, 16384):
        size = min(16384, n - start)
        half = (size + 1) // 2
        radii, angles = ([list(stream.uniform(half)) for _ in range(4)] for _ in range(2))
        for turn in (math.cos, math.sin):
            expected += [
                sum(
                    math.sqrt(-2 * math.log(1 - r[i])) * turn(2 * math.pi * a[i])
                    for r, a in zip(radii, angles, strict=True)
                )
                for i in range(half)
            ][: size if turn is math.cos else size - half]
    assert np.allclose(Stream(KEY).gaussian(n, 3.0), np.array(expected) * 1.5, rtol=0, atol=1e-11)


@pytest.mark.parametrize("n", [0, 1, 737, 5000, 16384, 40_001])
@pytest.mark.parametrize("threads", [1, 2])
def test_gaussians_of_many_streams_are_those_of_each(n: int, threads: int) -> None:
    """Bit for bit, whatever the number of threads, and each stream goes on where it was."""

    def streams() -> list[Stream]:
        return [Stream(bytes([i]) * 32) for i in range(7)]

    together, alone = streams(), streams()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = gaussians(together, n, 2.5)
    finally:
        torch.set_num_threads(before)
    assert rows.shape == (7, n)
    assert np.array_equal(rows, [stream.gaussian(n, 2.5) for stream in alone])
    assert [s.bytes(8) for s in together] == [s.bytes(8) for s in alone]


def test_no_streams_and_no_noise_are_no_draws() -> None:
    stream = Stream(KEY)
    assert gaussians([], 5, 1.0).shape == (0, 5)
    assert not gaussians([stream], 5, 0.0).any()
    assert stream.bytes(8) == Stream(KEY).bytes(8)


def test_an_idle_client_does_not_load_torch_for_its_streams() -> None:
    script = "import sys, tacit.privacy.noise as n; n.Stream(bytes(32)).uniform(3); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_no_noise_is_zero_and_uses_nothing_of_the_stream() -> None:
    stream = Stream(KEY)
    assert not stream.gaussian((4, 5), 0.0).any()
    assert stream.bytes(8) == Stream(KEY).bytes(8)


@pytest.mark.parametrize("shape", [(), 0, 3, (0, 4), (2, 3, 5)])
def test_shapes(shape: int | tuple[int, ...]) -> None:
    wanted = (shape,) if isinstance(shape, int) else shape
    assert Stream(KEY).gaussian(shape, 1.0).shape == wanted
    assert Stream(KEY).uniform(shape).shape == wanted


@pytest.mark.parametrize("q", [0.0, 2.0**-60, 1e-9, 0.1, 0.5, 1 - 2.0**-53, 1.0])
def test_bernoulli_compares_each_word_with_the_exact_threshold(q: float) -> None:
    words = struct.unpack("<2000Q", keystream(KEY, 16000).tobytes())
    numerator, denominator = q.as_integer_ratio()
    threshold = numerator * 2**64 // denominator
    assert Stream(KEY).bernoulli(2000, q).tolist() == [word < threshold for word in words]


def test_bernoulli_uses_as_much_of_the_stream_whatever_q_is() -> None:
    streams = [Stream(KEY) for _ in range(3)]
    for stream, q in zip(streams, (0.0, 0.3, 1.0), strict=True):
        stream.bernoulli(10, q)
    assert len({stream.bytes(8) for stream in streams}) == 1


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_bernoulli_refuses_what_is_no_probability(q: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        Stream(KEY).bernoulli(1, q)


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
def test_gaussian_refuses_what_is_no_standard_deviation(std: float) -> None:
    with pytest.raises(ValueError, match="standard deviation"):
        Stream(KEY).gaussian(1, std)


def test_rounding_is_to_a_neighbour_and_unbiased() -> None:
    values = np.repeat([-2.75, -1.0, 0.0, 0.1, 7.5], 40_000).reshape(5, 40_000)
    rounded = Stream(KEY).rounding(values)
    assert rounded.dtype == np.int64 and rounded.shape == values.shape
    assert np.abs(rounded - values).max() < 1
    assert np.abs(rounded.mean(axis=1) - values[:, 0]).max() < 5 * 0.5 / math.sqrt(40_000)


@pytest.mark.parametrize("value", [math.nan, math.inf, 2.0**53])
def test_rounding_refuses_what_cannot_be_rounded(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Stream(KEY).rounding(np.array([0.5, value]))


def test_I15_no_seed_of_numpy_torch_or_random_changes_a_stream() -> None:
    drawn = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        drawn.append((Stream(KEY).gaussian(10, 1.0).tolist(), SeededKeys(3).key("noise", 1)))
    assert drawn[0] == drawn[1]


def test_I15_noise_is_fresh_although_the_user_fixes_every_seed() -> None:
    seen = set()
    for _ in range(2000):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        seen.add(Stream(SystemKeys().key("noise", 1, 1)).gaussian(4, 1.0).tobytes())
    assert len(seen) == 2000


def test_I15_a_stream_made_before_a_fork_refuses_to_be_used_after_it() -> None:
    program = """
import os
from tacit.privacy.noise import Stream
stream = Stream(bytes(32))
child = os.fork()
if child == 0:
    try:
        stream.bytes(1)
    except RuntimeError:
        os._exit(7)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
stream.bytes(1)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


DRAWS = """
import random, sys
import numpy as np
from tacit.privacy.noise import Stream, SystemKeys

def draw(channel):
    random.seed(0)
    np.random.seed(0)
    channel.send(Stream(SystemKeys().key("noise", 1, 1)).bytes(16).hex())

if __name__ == "__main__":
    import multiprocessing
    SystemKeys().key("noise", 1, 1)  # whatever there is to share is there now
    for method in ("fork", "fork", "spawn"):
        context = multiprocessing.get_context(method)
        here, there = context.Pipe()
        child = context.Process(target=draw, args=(there,))
        child.start()
        print(here.recv())
        child.join()
"""


def test_K7_processes_that_are_forked_or_spawned_share_no_randomness(tmp_path: Path) -> None:
    (tmp_path / "draws.py").write_text(DRAWS)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "draws.py")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    drawn = done.stdout.split()
    assert len(set(drawn)) == len(drawn) == 3


def test_a_stream_is_not_printed_or_copied() -> None:
    stream = Stream(KEY)
    assert repr(stream) == "<Stream: secret>"
    with pytest.raises(TypeError, match="not copied"):
        pickle.dumps(stream)
    with pytest.raises(ValueError, match="32 bytes"):
        Stream(b"short")


def test_seeded_keys_differ_with_every_part_and_no_two_indices_share_bytes() -> None:
    indices: list[tuple[int | str, ...]] = [
        ("noise",),
        ("noise", 1),
        ("noise", "1"),
        ("noise", 11),
        ("noise", 1, 1),
        ("noise", -1),
        ("noise", "1", ""),
        ("noise", "", "1"),
        ("nois", "e", 1),
        ("poisson", 1),
    ]
    keys = [SeededKeys(seed).key(*index) for seed in (0, 1, 2**80) for index in indices]  # type: ignore[arg-type]
    assert len(set(keys)) == len(keys) and {len(key) for key in keys} == {32}
    assert SeededKeys(1).key("noise", 4, "a") == SeededKeys(1).key("noise", 4, "a")


def test_system_keys_are_fresh_for_the_same_index() -> None:
    keys = {SystemKeys().key("noise", 1) for _ in range(1000)}
    assert len(keys) == 1000 and {len(key) for key in keys} == {32}


def test_a_million_normals_cost_a_small_multiple_of_numpys() -> None:
    def fastest(draw: object) -> float:
        times = []
        for _ in range(5):
            start = time.thread_time()  # of work: what others do on this machine does not count
            draw()  # type: ignore[operator]
            times.append(time.thread_time() - start)
        return min(times)

    stream, numpy = Stream(KEY), np.random.default_rng(0)
    ratio = fastest(lambda: stream.gaussian(1_000_000, 1.0)) / fastest(
        lambda: numpy.standard_normal(1_000_000)
    )
    assert ratio < 25  # 7 when quiet, for four draws each
