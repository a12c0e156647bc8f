"""Starts the process that fuzzes a target, and reads what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fuzz.seeds import inputs

ROOT: Final = Path(__file__).parents[2]
LONGEST: Final = 4096  # bytes of an input
SLOWER: Final = 5  # instrumented code takes so much longer
REACHED: Final = re.compile(r"^#\d+\s.* cov: (\d+)", re.MULTILINE)
EXECUTED: Final = re.compile(r"^stat::number_of_executed_units:\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What became of some time with a target.

    Attributes:
        name: of the target.
        executions: inputs that were tried.
        seconds: how long.
        before, after: edges of the code that the first inputs reach, and all.
        finding: what missed a bar and the file with its input; empty where nothing did.
    """

    name: str
    executions: int
    seconds: int
    before: int
    after: int
    finding: str

    def __str__(self) -> str:
        reached = f"{self.before} -> {self.after} edges"
        line = f"{self.name:10} {self.executions:9,} executions in {self.seconds} s  {reached}"
        return line + (f"\n{self.finding}" if self.finding else "")


def fuzz(name: str, seconds: int) -> Outcome:
    """Fuzzes a target for some time, from its seeds, its findings and what earlier calls have learnt."""
    kept = ROOT / "build" / "fuzz" / name
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tacit-fuzz-") as scratch:
        seeds = Path(scratch) / "seeds"
        seeds.mkdir()
        for number, content in enumerate(inputs(name)):
            (seeds / str(number)).write_bytes(content)
        command = [
            *(sys.executable, "-W", "ignore", "-m", "tests.fuzz.process", name, str(SLOWER)),
            *(str(kept), str(seeds), f"-max_total_time={seconds}", f"-max_len={LONGEST}"),
            *(f"-artifact_prefix={kept.parent}/{name}-", "-timeout=30", "-rss_limit_mb=3072"),
            *("-print_final_stats=1", "-verbosity=1"),
        ]
        environment = {**os.environ, "TMPDIR": scratch, "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
    outcome = outcome_of(name, seconds, done)
    print(outcome, flush=True)
    return outcome


def outcome_of(name: str, seconds: int, done: subprocess.CompletedProcess[str]) -> Outcome:
    """What a process has said: the fuzzer on stderr, an exception of the target on stdout."""
    reached = [0, *map(int, REACHED.findall(done.stderr))]
    executions = [0, *map(int, EXECUTED.findall(done.stderr))]
    said = [line for line in done.stderr.splitlines() if not line.startswith(("INFO", "#", "WARNING"))]
    finding = "\n".join([done.stdout[-3000:], *said[-20:]]) if done.returncode else ""
    return Outcome(name, executions[-1], seconds, min(reached[1:], default=0), reached[-1], finding)
