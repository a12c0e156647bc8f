"""`make wheelhouse`: all wheels that a node needs, in one folder, for machines without a network.

For each kind of machine it writes down what is there: `requirements-MACHINE.txt` with the SHA-256 of every wheel, from
which pip installs nothing else (`--require-hashes`), and `sbom-MACHINE.cdx.json`, a bill of materials with licences.

Linux on x86-64 and on 64-bit ARM, in the versions of constraints.txt, without extras: what a server and a client need.
torch is its CPU build: the package index has only builds for CUDA, which bring 2.5 GB of libraries, so torch comes
from the index of CPU builds that PyTorch keeps. The wheels are for the Python that runs this.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any, NamedTuple

from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
MACHINES = ("x86_64", "aarch64")
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
GLIBC = 28  # 2.28, of 2018: what torch asks for; wheels for older ones run there, too


def main() -> None:
    """Builds our own wheel, downloads the others, says how large it all is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "out", type=Path, help="the folder; wheels that are there already are not fetched again"
    )
    parser.add_argument("--machine", choices=MACHINES, action="append", help="only this one")
    parser.add_argument("--torch-index", default=CPU_BUILDS, help="where torch's CPU builds are")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pip("wheel", "--no-deps", "--wheel-dir", str(options.out), str(ROOT))
    for machine in options.machine or MACHINES:
        given = target(machine, options.out)
        # torch first and alone: of what else that index has, nothing is wanted.
        pip("download", *given, "--no-deps", "--extra-index-url", options.torch_index, cpu_torch())
        pip(
            "download",
            *given,
            "-c",
            str(CONSTRAINTS),
            cpu_torch(),
            *map(str, options.out.glob("tacit-*.whl")),
        )
    for machine in options.machine or MACHINES:
        write_lists(options.out, machine)
    report(options.out, options.machine or MACHINES)


def pip(*words: str) -> None:
    """Runs pip of this Python; ends with its exit code when it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", *words, "--quiet"], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def target(machine: str, out: Path) -> list[str]:
    """What `pip download` is told for one kind of machine, which need not be this one.

    Markers of dependencies are read as of this machine: a test makes sure that none of ours asks for the processor.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    words = ["--only-binary=:all:", "--implementation", "cp", "--python-version", version]
    for platform in platforms(machine):
        words += ["--platform", platform]
    return [*words, "--find-links", str(out), "--dest", str(out)]


def platforms(machine: str) -> Iterator[str]:
    """Tags of wheels that run with glibc 2.28: pip does not derive the older ones of a platform that it is told."""
    for minor in range(GLIBC, 4, -1):
        yield f"manylinux_2_{minor}_{machine}"
    for year in (2014, 2010, 1):
        yield f"manylinux{year}_{machine}"


def cpu_torch() -> str:
    """torch in the version of the constraints, and only its CPU build."""
    found = re.search(r"^torch==([\d.]+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None, "constraints.txt pins no torch"
    return f"torch=={found[1]}+cpu"


class Wheel(NamedTuple):
    """What is told of one wheel: name and version as in its file name, SHA-256 in hex."""

    path: Path
    name: str
    version: str
    digest: str

    @classmethod
    def of(cls, path: Path) -> Wheel:
        """Read from a file."""
        name, version, *_ = parse_wheel_filename(path.name)
        return cls(path, name, str(version), hashlib.sha256(path.read_bytes()).hexdigest())

    @property
    def url(self) -> str:
        """The package URL; a `+` is quoted there."""
        return f"pkg:pypi/{self.name}@{self.version.replace('+', '%2B')}"

    @property
    def licences(self) -> list[dict[str, Any]]:
        """As its metadata state them: an SPDX expression, else a name, else what it is classified as."""
        with zipfile.ZipFile(self.path) as archive:
            (entry,) = [
                name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)
            ]
            told: Message = BytesParser().parsebytes(archive.read(entry), headersonly=True)
        if expression := told["License-Expression"]:
            return [{"expression": expression}]
        classified = [
            c.rpartition(" :: ")[2] for c in told.get_all("Classifier", []) if c.startswith("License ::")
        ]
        name = (told["License"] or "").strip()
        # Some put the whole text of their licence there.
        names = [name] if name and "\n" not in name else classified
        return [{"license": {"name": name}} for name in names]


def wheels_of(out: Path, machine: str) -> list[Path]:
    """The wheels that a machine of one kind installs from."""
    others = [other for other in MACHINES if other != machine]
    return sorted(path for path in out.glob("*.whl") if not any(other in path.name for other in others))


def write_lists(out: Path, machine: str) -> None:
    """Writes what is there for one kind of machine; ends with a line when two versions of one package are."""
    wheels = [Wheel.of(path) for path in wheels_of(out, machine)]
    names = [wheel.name for wheel in wheels]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        sys.exit(f"{out}: two wheels of {', '.join(twice)} for {machine}: delete the folder and begin anew")
    lines = [f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.digest}" for wheel in wheels]
    (out / f"requirements-{machine}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "tacit"}},
        "components": [
            {
                "type": "library",
                "bom-ref": wheel.url,
                "name": wheel.name,
                "version": wheel.version,
                "purl": wheel.url,
                "hashes": [{"alg": "SHA-256", "content": wheel.digest}],
                "licenses": wheel.licences,
            }
            for wheel in wheels
        ],
    }
    (out / f"sbom-{machine}.cdx.json").write_text(json.dumps(bill, indent=2) + "\n", encoding="utf-8")


def report(out: Path, machines: Sequence[str]) -> None:
    """Prints how large the wheels are that a machine of each kind installs from."""
    sizes = {wheel.name: wheel.stat().st_size for wheel in out.glob("*.whl")}
    for machine in machines:
        mine = [sizes[wheel.name] for wheel in wheels_of(out, machine)]
        print(f"linux {machine}: {len(mine)} wheels, {sum(mine) / 1e6:.0f} MB")
    print(f"{out}: {len(sizes)} wheels, {sum(sizes.values()) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
