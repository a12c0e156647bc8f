"""`make wheelhouse`: all wheels that a node needs, in one folder, for machines without a network.

Linux on x86-64 and on 64-bit ARM, in the versions of constraints.txt, without extras: what a server and a client need.
torch is its CPU build: the package index has only builds for CUDA, which bring 2.5 GB of libraries, so torch comes
from the index of CPU builds that PyTorch keeps. The wheels are for the Python that runs this.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

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


def report(out: Path, machines: Sequence[str]) -> None:
    """Prints how large the wheels are that a machine of each kind installs from."""
    sizes = {wheel.name: wheel.stat().st_size for wheel in out.glob("*.whl")}
    for machine in machines:
        others = [m for m in MACHINES if m != machine]
        mine = [size for name, size in sizes.items() if not any(other in name for other in others)]
        print(f"linux {machine}: {len(mine)} wheels, {sum(mine) / 1e6:.0f} MB")
    print(f"{out}: {len(sizes)} wheels, {sum(sizes.values()) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
