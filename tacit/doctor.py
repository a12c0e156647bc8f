"""`tacit doctor`: what is installed, what is missing for which use, and what stands in the way."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import typer

if TYPE_CHECKING:
    from packaging.markers import Marker

# Four of these are common words: another folder of that name on the path would be imported instead.
OWN = ("tacit", "server", "client", "strategies", "simulations")
SHOWN = ("flwr", "torch", "opacus", "cryptography", "dp-accounting")
IMPORTED = ("flwr.app", "torch", "opacus", "cryptography", "nacl.bindings", "dp_accounting")
PROGRAMS = ("flwr", "flower-superlink", "flower-superexec", "flower-supernode")
USES = {
    "client": "a client or a server",
    "tables": "Parquet files",
    "simulation": "tacit simulate",
    "ray": "tacit simulate --engine ray",
    "processes": "tacit server, tacit client",
    "export": "tacit export",
    "serve": "tacit serve",
    "explain": "evaluation.explain",
}
PROBE = "from tacit.doctor import probe; probe()"


@dataclass(frozen=True)
class Findings:
    """What the doctor saw. Empty `shadowed`, `broken` and `missing["client"]` are health.

    Attributes:
        python: its version.
        packages: version per distribution; "" = not installed.
        accelerators: CUDA devices that torch can use.
        shadowed: package of ours -> the place that it would be imported from instead.
        broken: module -> why it cannot be imported.
        missing: use -> what it lacks, each with what to do.
        telemetry: whether Flower would report to its makers; never, in a command of ours.
    """

    python: str
    packages: dict[str, str]
    accelerators: list[str]
    shadowed: dict[str, str]
    broken: dict[str, str]
    missing: dict[str, list[str]]
    telemetry: bool

    @property
    def ok(self) -> bool:
        """Whether a client can run here."""
        return not (self.shadowed or self.broken or self.missing["client"] or self.telemetry)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what is installed, what is missing for which use, and what stands in the way.

    Exit code 0: a client can run here. 1: something is missing for it, broken, or
    shadowed by another package of the same name.
    """
    findings = examine()
    if as_json:
        print(json.dumps({**asdict(findings), "ok": findings.ok}, indent=2))
    else:
        _show(findings)
    raise typer.Exit(0 if findings.ok else 1)


def examine() -> Findings:
    """Looks at this Python and its environment. Imports nothing heavy into this process."""
    broken, accelerators = _probe()
    return Findings(
        python=platform.python_version(),
        packages={name: _version(name) for name in ("tacit", *SHOWN)},
        accelerators=accelerators,
        shadowed=shadowed(),
        broken=broken,
        missing={
            "client": list(lacking("")),
            "tables": list(lacking("tables")),
            "simulation": [line for line in lacking("simulation") if not line.startswith("ray")],
            "ray": [line for line in lacking("simulation") if line.startswith("ray")],
            "processes": list(_absent_programs()),
            "export": list(lacking("export")),
            "serve": list(lacking("serve")),
            "explain": list(lacking("explain")),
        },
        telemetry=os.environ.get("FLWR_TELEMETRY_ENABLED") != "0",
    )


def shadowed() -> dict[str, str]:
    """Packages of ours that an import would take from elsewhere, and from where."""
    root = _own_root()
    found = {name: _place(spec) for name in OWN if (spec := _first_spec(name)) is not None}
    return {name: str(place) for name, place in found.items() if place != (root / name).resolve()}


def lacking(extra: str) -> Iterator[str]:
    """What is not installed, or in another version, of what an extra needs; "" is what a client needs."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires("tacit") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield "tacit is not installed: pip install tacit"
        return
    for requirement in requirements:
        if not _belongs(requirement.marker, extra):
            continue
        if requirement.name == "tacit":  # an extra that includes another
            for other in requirement.extras:
                yield from lacking(other)
            continue
        version = _version(requirement.name)
        if not version or not requirement.specifier.contains(version, prereleases=True):
            have = f"{version} is installed" if version else "is missing"
            yield f"{requirement.name} {have}, needed: {requirement.specifier or 'any version'}"


def _belongs(marker: Marker | None, extra: str) -> bool:
    """Whether a requirement belongs to an extra, and to this Python and system; "" is the base."""
    if marker is None:
        return not extra
    return marker.evaluate({"extra": extra}) and (not extra or not marker.evaluate({"extra": ""}))


def probe() -> None:
    """Runs in a process of its own: what can be imported, and which devices there are, as JSON."""
    broken, devices = {}, []
    for name in sys.argv[1:]:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever it is, it is the finding
            broken[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    print(json.dumps([broken, devices]))


def _probe() -> tuple[dict[str, str], list[str]]:
    # -P: the folder that one happens to stand in is no part of the path, as for the command `tacit`.
    command = [sys.executable, "-P", "-c", PROBE, *IMPORTED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        broken, devices = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"python": f"importing {', '.join(IMPORTED)} ended the process: {last}"}, []
    return broken, devices


def _own_root() -> Path:
    """The folder in which this distribution's packages lie side by side."""
    try:
        own = importlib.metadata.distribution("tacit")
    except importlib.metadata.PackageNotFoundError:
        return Path(__file__).resolve().parents[1]
    source: dict[str, Any] = json.loads(own.read_text("direct_url.json") or "{}")
    if source.get("dir_info", {}).get("editable"):
        return Path(url2pathname(urlsplit(source["url"]).path))
    return Path(str(own.locate_file("")))


def _first_spec(name: str) -> ModuleSpec | None:
    """What `import name` would find, had nobody imported it yet."""
    for finder in sys.meta_path:
        spec = finder.find_spec(name, None)
        if spec is not None:
            return spec
    return None


def _place(spec: ModuleSpec) -> Path:
    """The folder of a package, the file of a module."""
    folders = list(spec.submodule_search_locations or ())
    return Path(folders[0] if folders else spec.origin or "?").resolve()


def _absent_programs() -> Iterator[str]:
    scripts = sysconfig.get_path("scripts")
    for name in PROGRAMS:
        if shutil.which(name, path=scripts) is None:
            yield f"the program {name} is not in {scripts}: install flwr again"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _show(findings: Findings) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        for topic, text in _lines(findings):
            print(f"{topic}: {text}")
        return
    table = Table(box=box.SIMPLE, show_header=False)
    for topic, text in _lines(findings):
        table.add_row(Text(topic), Text(text))
    console.print(table)


def _lines(findings: Findings) -> Iterator[tuple[str, str]]:
    yield "python", findings.python
    for name, version in findings.packages.items():
        yield name, version or "not installed"
    yield "accelerators", ", ".join(findings.accelerators) or "none: training runs on the CPU"
    yield "Flower's telemetry", "ON" if findings.telemetry else "off"
    for name, place in findings.shadowed.items():
        yield "SHADOWED", f"`import {name}` takes {place}: give Tacit an environment of its own"
    for name, reason in findings.broken.items():
        yield "BROKEN", f"{name}: {reason}"
    for use, problems in findings.missing.items():
        todo = "" if use in ("client", "processes") else f"; pip install 'tacit[{_extra_of(use)}]'"
        yield f"for {USES[use]}", "; ".join(problems) + todo if problems else "ready"
    yield "verdict", "a client can run here" if findings.ok else "a client cannot run here as it is"


def _extra_of(use: str) -> str:
    return "simulation" if use == "ray" else use
