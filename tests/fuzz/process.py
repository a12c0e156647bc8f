"""The process that fuzzes one target: python -m tests.fuzz.process NAME SLOWER LIBFUZZER-ARGUMENTS...

The code under test is instrumented as it is imported, and nothing else is.
"""

from __future__ import annotations

import sys

import atheris

from tests import network_guard
from tests.fuzz.bars import execute

PACKAGES = ["tacit", "client", "server", "strategies", "simulations", "tomllib"]
MEMORY_EVERY = 16  # executions


def main() -> None:
    """Fuzzes until the time is up or a bar is missed; libFuzzer ends the process."""
    name, slower, *arguments = sys.argv[1:]
    network_guard.watch(lambda line: None)
    with atheris.instrument_imports(include=PACKAGES, enable_loader_override=False):
        from tests.fuzz.targets import target

        function = target(name)
    executions = 0

    def one(data: bytes) -> None:
        nonlocal executions
        executions += 1
        execute(function, data, memory=executions % MEMORY_EVERY == 0, slower=float(slower))

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
