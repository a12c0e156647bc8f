"""The wheels for machines without a network, and what is written down of them."""

import hashlib
import json
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.architecture.sources import ROOT, text

SCRIPT = runpy.run_path(str(ROOT / "deploy" / "wheelhouse.py"))
ANY, X86, ARM = "py3-none-any", "py3-none-manylinux_2_28_x86_64", "py3-none-manylinux_2_28_aarch64"


def make_wheel(folder: Path, name: str, version: str, tag: str = ANY, *headers: str, code: str = "") -> Path:
    """One that pip installs."""
    path, told = folder / f"{name}-{version}-{tag}.whl", f"{name}-{version}.dist-info"
    metadata = "\n".join(("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *headers)) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", code)
        archive.writestr(f"{told}/METADATA", metadata)
        archive.writestr(f"{told}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{told}/RECORD", "")
    return path


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Wheels for both kinds of machine."""
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    make_wheel(folder, "tacit", "0.1.0", ANY, "License-Expression: Apache-2.0", "Requires-Dist: lib>=1")
    make_wheel(
        folder, "lib", "1.5", ANY, "License: BSD", "Classifier: License :: OSI Approved :: Something else"
    )
    for tag in (X86, ARM):
        make_wheel(folder, "heavy", "2.0+cpu", tag, "Classifier: License :: OSI Approved :: MIT License")
    for machine in SCRIPT["MACHINES"]:
        SCRIPT["write_lists"](folder, machine)
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bill(house: Path, machine: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((house / f"sbom-{machine}.cdx.json").read_text())
    return found


def test_K8_every_wheel_of_a_machine_is_listed_with_its_hash(house: Path) -> None:
    for machine, tag in (("x86_64", X86), ("aarch64", ARM)):
        assert (house / f"requirements-{machine}.txt").read_text().splitlines() == [
            f"{name}=={version} --hash=sha256:{digest(house / f'{name}-{version}-{each}.whl')}"
            for name, version, each in (
                ("heavy", "2.0+cpu", tag),
                ("lib", "1.5", ANY),
                ("tacit", "0.1.0", ANY),
            )
        ]


def test_K8_pip_installs_what_is_listed_and_refuses_a_wheel_that_was_changed(
    house: Path, tmp_path: Path
) -> None:
    def install(target: str) -> subprocess.CompletedProcess[str]:
        words = ("--isolated", "install", "--no-index", "--find-links", str(house), "--require-hashes")
        platform = (
            "--platform",
            "manylinux_2_28_x86_64",
            "--only-binary=:all:",
            "--target",
            str(tmp_path / target),
        )
        command = [
            sys.executable,
            "-m",
            "pip",
            *words,
            *platform,
            "-r",
            str(house / "requirements-x86_64.txt"),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = install("good")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "good").glob("*.py")} == {"tacit.py", "lib.py", "heavy.py"}
    make_wheel(house, "lib", "1.5", code="print('another program')")
    done = install("bad")
    assert done.returncode != 0 and "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "bad" / "lib.py").exists()


def test_K8_the_bill_of_materials_names_every_wheel_with_hash_and_licence(house: Path) -> None:
    found = bill(house, "x86_64")
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    heavy, lib, tacit = found["components"]
    assert [part["purl"] for part in (heavy, lib, tacit)] == [
        "pkg:pypi/heavy@2.0%2Bcpu",
        "pkg:pypi/lib@1.5",
        "pkg:pypi/tacit@0.1.0",
    ]
    assert heavy["hashes"] == [{"alg": "SHA-256", "content": digest(house / f"heavy-2.0+cpu-{X86}.whl")}]
    assert heavy["licenses"] == [{"license": {"name": "MIT License"}}]
    assert lib["licenses"] == [{"license": {"name": "BSD"}}]
    assert tacit["licenses"] == [{"expression": "Apache-2.0"}]
    assert bill(house, "aarch64")["components"][0]["hashes"] != heavy["hashes"]


def test_a_licence_is_named_and_not_printed_in_full(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "wordy", "1", ANY, "License: Whereas", "        and so on")
    assert SCRIPT["Wheel"].of(path).licences == []


def test_two_versions_of_a_package_are_not_listed(house: Path) -> None:
    make_wheel(house, "lib", "1.6")
    with pytest.raises(SystemExit, match="two wheels of lib for x86_64"):
        SCRIPT["write_lists"](house, "x86_64")


def test_a_wheelhouse_is_for_both_machines_with_torch_for_cpus() -> None:
    assert SCRIPT["MACHINES"] == ("x86_64", "aarch64")
    assert f"{SCRIPT['cpu_torch']().removesuffix('+cpu')}\n" in text("constraints.txt")
    for machine in SCRIPT["MACHINES"]:
        words = SCRIPT["target"](machine, Path("out"))
        assert "--only-binary=:all:" in words  # nothing that is downloaded is executed
        tags = {word for word in words if machine in word}
        assert {f"manylinux_2_28_{machine}", f"manylinux_2_17_{machine}", f"manylinux2014_{machine}"} <= tags
        assert not any("2_29" in tag or "2_34" in tag for tag in tags)


def test_a_wheelhouse_says_how_large_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in {"a-1-any": 1, "b-1-manylinux_2_28_x86_64": 2, "b-1-manylinux_2_28_aarch64": 4}.items():
        (tmp_path / f"{name}.whl").write_bytes(bytes(size * 1_000_000))
    SCRIPT["report"](tmp_path, SCRIPT["MACHINES"])
    assert capsys.readouterr().out.splitlines() == [
        "linux x86_64: 2 wheels, 3 MB",
        "linux aarch64: 2 wheels, 5 MB",
        f"{tmp_path}: 3 wheels, 7 MB",
    ]
