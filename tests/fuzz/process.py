"""The process that fuzzes one target: python -m tests.fuzz.process NAME SLOWER LIBFUZZER-ARGUMENTS...

The code under test is instrumented as it is imported, and nothing else is.
"""

from __future__ import annotations

import random
import sys

import atheris

from tests import network_guard
from tests.fuzz.bars import execute
from tests.fuzz.edits import edited

PACKAGES = ["tacit", "client", "server", "strategies", "simulations", "tomllib"]
MEMORY_EVERY = 16  # executions
OWN_EDITS = 0.5  # share of the inputs that are changed as lists; half of these by libFuzzer too


def main() -> None:
    """Fuzzes until the time is up or a bar is missed; libFuzzer ends the process."""
    name, slower, *arguments = sys.argv[1:]
    network_guard.watch(lambda line: None)
    with atheris.instrument_imports(include=PACKAGES, enable_loader_override=False):
        from tests.fuzz.seeds import inputs
        from tests.fuzz.targets import target

        function = target(name)
    seeds = inputs(name)
    executions = 0

    def one(data: bytes) -> None:
        nonlocal executions
        executions += 1
        execute(function, data, memory=executions % MEMORY_EVERY == 0, slower=float(slower))

    def mutated(data: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if own := rng.random() < OWN_EDITS:
            data = edited(rng, data, seeds)[:longest]
        return data if own and rng.random() < OWN_EDITS else bytes(atheris.Mutate(data, longest))

    atheris.Setup([sys.argv[0], *arguments], one, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
