"""A whole federation on this machine: the commands of a real one, each a process of its own, over TLS on loopback.

provision -> enroll at each site -> collect -> server -> run at each site -> submit

Nothing here does what a command would not: it divides the data among the kits, passes files on as people would, and
compares the digest of the roster by believing it.

Guarantees:
    When it returns, no process that it has started is left.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tomli_w

from simulations.run import prepare
from simulations.sites import PreparedSites
from tacit.config import Experiment, SecureAggregation
from tacit.errors import ConfigError, RunFailed
from tacit.processes import Group, free_port, interrupted_once, tacit_command

COORDINATOR: Final = Path("kits") / "coordinator"
START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 20.0

# What is done here -> what a federation of real sites does.
DIFFERENCES: Final = (
    (
        "The records of all sites lie on one machine.",
        "Each site has its own, and nobody else's.",
    ),
    (
        "tacit provision hands over the kits by copying a file.",
        "A kit is sent; it holds no secret. tacit client enroll makes the keys at the site.",
    ),
    (
        "The digest of the roster is taken from the coordinator's own file.",
        "Operators compare every fingerprint and the digest by telephone, and type yes.",
    ),
    (
        "The address is localhost; one firewall, one clock, one disk.",
        "federation.toml names a host that the sites can dial, and the one port that is open.",
    ),
    (
        "policy.toml of each site is as it was handed out.",
        "A site sets a ceiling for epsilon before it signs, and what else it insists on.",
    ),
    (
        "All processes end with this command.",
        "deploy/ has units, images and manifests that start them again.",
    ),
)


def fewest_sites(secure: SecureAggregation, most: int, least: int = 4) -> int:
    """The smallest number of sites, from `least` on, that an experiment's secure sum can be made of.

    Raises:
        ConfigError: there is none up to `most`.
    """
    for number in range(least, most + 1):
        try:
            if secure.enabled:
                secure.check_cohort(number)
            return number
        except ValueError as error:
            why = str(error)
    raise ConfigError(f"no rehearsal of up to {most} sites: {why}", key="secure_aggregation")


@dataclass(frozen=True)
class Rehearsed:
    """What came of it.

    Attributes:
        code: exit code of `tacit submit`.
        folder: with `kits` and the logs of all processes.
        run: folder of the run, with its model; None when there is none.
        seconds: by part.
    """

    code: int
    folder: Path
    run: Path | None
    seconds: dict[str, float]


def rehearse(experiment: Experiment, folder: Path, say: Callable[[str], None] = print) -> Rehearsed:
    """Runs an experiment in a federation of its own.

    Args:
        experiment: its data set is divided among the sites.
        folder: for all files; must not hold another rehearsal.
        say: is told what happens.

    Raises:
        RunFailed: a command failed; names it and its log.
        ConfigError, DataError: the data cannot be divided so.
    """
    seconds: dict[str, float] = {}
    began = time.monotonic()

    def part(name: str) -> None:
        nonlocal began
        seconds[name], began = time.monotonic() - began, time.monotonic()

    folder = folder.resolve()
    prepared = prepare(experiment, folder / "data")
    labels = [site.label for site in prepared.sites]
    _write_files(prepared, folder)
    part("data")
    commands = Commands(folder, say)
    commands.do("provision", "federation.toml", "--out", "kits")
    for i, site in enumerate(prepared.sites):
        source, kit = prepared.data_path(i), f"kits/{site.label}"
        data = f"{kit}/{source.name}"
        shutil.copyfile(source, folder / data)
        (folder / data).chmod(0o600)
        # The rows that train are what the experiment reckons with; those held out are never in an update.
        commands.do("client", "enroll", kit, "--data", data, "--rows", str(site.train_rows))
    requests = [f"kits/{label}/request.json" for label in labels]
    commands.do("provision", "collect", *requests, "--kit", str(COORDINATOR))
    part("keys and roster")
    digest = _digest_of(folder / COORDINATOR)
    with ExitStack() as stack:
        stack.enter_context(interrupted_once())
        server = commands.start(stack, "server", "server", "--kit", str(COORDINATOR))
        sites = [
            commands.start(stack, label, "client", "run", f"kits/{label}", "--approve", digest)
            for label in labels
        ]
        code = commands.follow([server, *sites], "submit", "experiment.toml", "--kit", str(COORDINATOR))
        for _, group in sites:
            group.leader.terminate()  # all at once; each takes leave of the server
        part("server, sites and run")
    part("stopping")
    found = sorted((folder / COORDINATOR / "state" / "runs").glob("[!.]*"))
    return Rehearsed(code, folder, found[0] if found else None, seconds)


@dataclass
class Commands:
    """`tacit` commands in one folder, as a person would type them.

    Attributes:
        folder: where they work, and where logs/NAME.log is what they print.
        say: is told each of them.
    """

    folder: Path
    say: Callable[[str], None]

    def do(self, *arguments: str) -> None:
        """Runs one to its end.

        Raises:
            RunFailed: it failed.
        """
        self.say(f"$ tacit {' '.join(arguments)}")
        with self._log("commands").open("ab") as log:
            done = subprocess.run(
                tacit_command(arguments), cwd=self.folder, env=os.environ, stdout=log, stderr=log, check=False
            )
        if done.returncode:
            self._failed("commands", arguments, done.returncode)

    def start(self, stack: ExitStack, name: str, *arguments: str) -> tuple[str, Group]:
        """Starts one that stays, and ends it with the stack."""
        self.say(f"$ tacit {' '.join(arguments)} &")
        with self._log(name).open("wb") as log:
            group = Group(
                tacit_command(arguments),
                environment=os.environ,
                folder=self.folder,
                output=log,
                patience=STOP_SECONDS,
            )
        stack.enter_context(group)
        return name, group

    def follow(self, watched: Iterable[tuple[str, Group]], *arguments: str) -> int:
        """Runs one to its end as long as those that stay do; prints what it prints.

        Raises:
            RunFailed: one that stays has ended.
        """
        self.say(f"$ tacit {' '.join(arguments)}")
        with Group(tacit_command(arguments), environment=os.environ, folder=self.folder) as group:
            while (code := group.leader.poll()) is None:
                for name, other in watched:
                    if (ended := other.leader.poll()) is not None:
                        self._failed(name, (name,), ended)
                time.sleep(0.1)
        return code

    def _log(self, name: str) -> Path:
        (self.folder / "logs").mkdir(mode=0o700, exist_ok=True)
        return self.folder / "logs" / f"{name}.log"

    def _failed(self, name: str, arguments: Iterable[str], code: int) -> None:
        tail = self._log(name).read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        raise RunFailed("\n".join([f"tacit {' '.join(arguments)} ended with code {code}", *tail]))


def _write_files(prepared: PreparedSites, folder: Path) -> None:
    """federation.toml as a coordinator would write it, and the experiment with its schema."""
    experiment = prepared.experiment
    secure, cohort = experiment.secure_aggregation, experiment.cohort_size
    fewest = max(cohort - secure.max_dropouts, secure.max_corrupt + 2)
    federation = {
        "name": experiment.name,
        "address": f"localhost:{free_port()}",
        "sites": [site.label for site in prepared.sites],
        "rules": {
            "min_clients": fewest,
            "max_corrupt": secure.max_corrupt,
            "max_dropouts": secure.max_dropouts,
        },
    }
    (folder / "federation.toml").write_text(tomli_w.dumps(federation), encoding="utf-8")
    (folder / "experiment.toml").write_text(experiment.to_toml(), encoding="utf-8")


def _digest_of(kit: Path) -> str:
    from tacit.secagg.signed_roster import SignedRoster

    return SignedRoster.decode((kit / "roster.json").read_bytes()).roster.digest().hex()
