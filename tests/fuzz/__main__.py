"""Coverage-guided fuzzing with Atheris, each target in a process of its own.

    python -m tests.fuzz [NAME...] [--seconds N]   fuzz these, or all; exit code 1 when something is found
    python -m tests.fuzz NAME --input FILE         run what was found once more

What the fuzzer learns is kept in build/fuzz/<NAME>, and the next call begins there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.bars import execute
from tests.fuzz.fuzzer import fuzz
from tests.fuzz.targets import TARGETS, target


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=str(__doc__).split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--input", type=Path, help="a file with one input")
    options = parser.parse_args(arguments)
    names = options.names or [*TARGETS]
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if options.input:
        execute(target(names[0]), options.input.read_bytes(), memory=True)
        return 0
    outcomes = [fuzz(name, options.seconds) for name in names]
    return int(any(outcome.finding for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
