"""Seeded faults: each is a small wrong edit and the one test that must go red because of it.

    python -m tests.faults [NAME...]    plant each fault (or only these); exit code 1 unless all are found
    python -m tests.faults --list       what there is

The register is `faults.toml`. A fault is planted in a copy of the tree, never in the tree itself. Its test must pass
in the untouched copy, and fail as a test in the other: an edit that cannot be imported proves nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.architecture.sources import PACKAGES, ROOT, has_test, project_files

REGISTER = Path(__file__).with_suffix(".toml")
SECONDS = 180
# A test that ends with one of these has not tested anything: the edit itself is wrong.
NO_VERDICT = ("ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "NameError")


@dataclass(frozen=True)
class Fault:
    """A wrong edit.

    Attributes:
        name: what is wrong, in words.
        file: where, from the root.
        text: occurs there exactly once.
        instead: takes its place.
        test: node id of the test that must fail.
        short: planted by every `make test`; the others by `make faults` and `make soak`.
    """

    name: str
    file: str
    text: str
    instead: str
    test: str
    short: bool = False

    def edited(self, content: str) -> str:
        """The file with the fault in it.

        Raises:
            ValueError: the text is not there, or more than once.
        """
        count = content.count(self.text)
        if count != 1:
            raise ValueError(f"{self.name}: {self.text!r} occurs {count} times in {self.file}")
        return content.replace(self.text, self.instead)


@dataclass(frozen=True)
class Outcome:
    """What became of a fault: "killed", "survived", or why there is no verdict."""

    fault: Fault
    verdict: str
    seconds: float


def register() -> list[Fault]:
    """All faults, in the order of the file."""
    return [Fault(**entry) for entry in tomllib.loads(REGISTER.read_text(encoding="utf-8"))["fault"]]


def plant(faults: Sequence[Fault], jobs: int = 0) -> Iterator[Outcome]:
    """Runs every fault's test with the fault in place, after all these tests have passed without.

    Args:
        faults: which.
        jobs: how many at a time; 0 = as many as there are processors, four at most.
    """
    with tempfile.TemporaryDirectory(prefix="tacit-faults-") as scratch:
        tree = copy_of_the_tree(Path(scratch) / "whole")
        red = failing(tree, sorted({fault.test for fault in faults if has_test(fault.test)}))

        def one(numbered: tuple[int, Fault]) -> Outcome:
            number, fault = numbered
            started = time.monotonic()
            if not has_test(fault.test):
                verdict = "no such test"
            elif fault.test in red:
                verdict = "the test is red without it"
            else:
                verdict = _verdict(fault, copy_of_the_tree(Path(scratch) / f"{number}"))
            return Outcome(fault, verdict, time.monotonic() - started)

        with ThreadPoolExecutor(jobs or min(4, os.cpu_count() or 1)) as pool:
            yield from pool.map(one, enumerate(faults))


def _verdict(fault: Fault, tree: Path) -> str:
    path = tree / fault.file
    path.write_text(fault.edited(path.read_text(encoding="utf-8")), encoding="utf-8")
    cases = run(tree, [fault.test])
    shutil.rmtree(tree)
    reasons = [reason for failed in cases.values() for reason in failed]
    if not cases:
        return "the test was not run: the edit cannot be imported"
    if not reasons:
        return "survived"
    verdicts = [reason for reason in reasons if not reason.startswith(NO_VERDICT)]
    return "killed" if verdicts else f"no verdict: {reasons[0]}"


def copy_of_the_tree(folder: Path) -> Path:
    """What git tracks or would track, in a folder of its own."""
    for name in project_files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    return folder


def failing(tree: Path, tests: Sequence[str]) -> set[str]:
    """Those of the tests that do not pass in an untouched copy."""
    environment = environment_of(tree)
    code = f"import {', '.join(PACKAGES)}; print(*({', '.join(f'{p}.__file__' for p in PACKAGES)},), sep=chr(10))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True, check=True
    )
    strangers = [line for line in done.stdout.splitlines() if not line.startswith(str(tree.resolve()))]
    if strangers:
        raise RuntimeError(f"not the copy is imported but {strangers}")
    cases = run(tree, tests)
    return {test for test in tests if cases.get(test) != []}


def run(tree: Path, tests: Sequence[str]) -> dict[str, list[str]]:
    """Runs tests in a copy of the tree: test function -> first line of each of its failures.

    Skipped cases and tests that could not be collected are left out.
    """
    if not tests:
        return {}  # pytest would take that for all there are
    report = tree / "report.xml"
    # Without shrinking: one counterexample is as good as a small one.
    options = (
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout",
        str(SECONDS),
        "--hypothesis-profile",
        "no-shrinking",
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *tests,
            *options,
            f"--junitxml={report}",
            "-o",
            "junit_family=xunit1",
        ],
        cwd=tree,
        env=environment_of(tree),
        capture_output=True,
        check=False,
    )
    found: dict[str, list[str]] = {}
    if not report.exists():
        return found
    for case in ET.parse(report).iter("testcase"):
        test = f"{case.get('file')}::{str(case.get('name')).partition('[')[0]}"
        if test in tests and case.find("skipped") is None:
            reasons = [str(e.get("message")) for tag in ("failure", "error") for e in case.findall(tag)]
            found.setdefault(test, []).extend(reasons)
    return found


def environment_of(tree: Path) -> dict[str, str]:
    """The environment in which the copy is imported, not what is installed."""
    return {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=str(__doc__).split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--list", action="store_true", help="print the register and plant nothing")
    parser.add_argument("--jobs", type=int, default=0, help="how many at a time")
    options = parser.parse_args(arguments)
    faults = register()
    unknown = set(options.names) - {fault.name for fault in faults}
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    chosen = [fault for fault in faults if not options.names or fault.name in options.names]
    if options.list:
        for fault in chosen:
            print(f"{fault.name:58} {fault.file:36} {fault.test}")
        return 0
    killed = 0
    for outcome in plant(chosen, options.jobs):
        killed += outcome.verdict == "killed"
        line = f"{outcome.fault.name:58} {outcome.fault.file:36} {outcome.seconds:5.1f} s  {outcome.verdict}"
        print(line, flush=True)
    print(f"{killed}/{len(chosen)} killed")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
