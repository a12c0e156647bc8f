"""H1 to H10: every target of the fuzzer over its seeds, its findings and changes of them; and the fuzzer itself.

The bars are those of the targets (tests/fuzz), and for each input 64 MB over its size and 10 ms for each KB.
"""

import os
import random

import numpy as np
import pytest

from tests.fuzz.bars import Exceeded, execute
from tests.fuzz.edits import edited
from tests.fuzz.seeds import CORPUS, found, inputs
from tests.fuzz.targets import TARGETS, target

NUM_CHANGED = 300
SHORTER = 40  # where an input takes milliseconds


def changed(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A seed with one to four edits."""
    data = rng.choice(seeds)
    for _ in range(rng.randint(1, 4)):
        data = edited(rng, data, seeds)[:4096]
    return data


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, about numbers that are refused later
@pytest.mark.parametrize("name", TARGETS)
def test_H1_to_H10_any_bytes_are_refused_or_say_what_they_say(name):
    function, seeds, rng = target(name), inputs(name), random.Random(name)
    assert len(seeds) >= 4
    for data in [b"", *seeds]:
        execute(function, data, memory=True)
    for number in range(SHORTER if name.startswith("H8") else NUM_CHANGED):
        execute(function, changed(rng, seeds), memory=number % 16 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_H1_to_H10_the_fuzzer_finds_nothing(name):
    pytest.importorskip("atheris", reason="Atheris has wheels for Linux on x86_64 only")
    from tests.fuzz.fuzzer import fuzz

    minutes = float(os.environ.get("TACIT_SOAK_MINUTES", "1"))
    outcome = fuzz(name, round(60 * minutes / len(TARGETS)))
    assert outcome.finding == ""
    assert outcome.executions > 0 < outcome.before <= outcome.after


def slow(data: bytes) -> int:
    return sum(i * i for i in range(600_000)) and len(data)


def large(data: bytes) -> int:
    return np.zeros(100 * 2**20, dtype=np.uint8).size and len(data)


def test_what_takes_too_long_or_too_much_memory_is_seen():
    with pytest.raises(Exceeded, match="s for 1 bytes"):
        execute(slow, b"x", memory=False)
    with pytest.raises(Exceeded, match="100 MB for 1 bytes"):
        execute(large, b"x", memory=True)
    execute(large, b"x", memory=False)
    execute(lambda data: len(data) << 30, b"x", memory=True)


def test_what_was_found_is_kept_with_a_word_on_each_and_small():
    files = sorted(CORPUS.glob("*.txt"))
    assert {path.stem for path in files} <= set(TARGETS)
    assert all(len([*found(path.stem)]) == path.read_text("utf-8").count("  # ") for path in files)
    assert sum(path.stat().st_size for path in files) < 50_000
