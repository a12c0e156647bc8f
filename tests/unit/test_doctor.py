"""`tacit doctor`: what it finds, what it calls ill, and with which exit code."""

import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tacit import doctor
from tacit.cli import main

TACIT = Path(sysconfig.get_path("scripts")) / "tacit"


@pytest.fixture(scope="module")
def healthy() -> tuple[int, dict[str, Any]]:
    """Exit code and findings of the real command here, where a user has asked for telemetry."""
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "1"}
    done = subprocess.run([TACIT, "doctor", "--json"], env=environment, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout)


def test_the_doctor_finds_this_environment_healthy(healthy: tuple[int, dict[str, Any]]) -> None:
    code, findings = healthy
    assert code == 0
    assert findings["ok"] is True
    for name in ("flwr", "torch", "opacus", "cryptography", "dp-accounting"):
        assert findings["packages"][name] == importlib.metadata.version(name)
    assert findings["shadowed"] == findings["broken"] == {}
    assert list(findings["missing"]) == [
        "client",
        "tables",
        "simulation",
        "ray",
        "processes",
        "export",
        "serve",
        "explain",
    ]
    assert findings["missing"]["client"] == findings["missing"]["processes"] == []


def test_K5_the_doctor_finds_telemetry_off_whatever_the_user_has_set(
    healthy: tuple[int, dict[str, Any]],
) -> None:
    assert healthy[1]["telemetry"] is False


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the process that imports everything."""
    monkeypatch.setattr(doctor, "_probe", lambda: ({}, []))


def _run(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[object, str]:
    with pytest.raises(SystemExit) as end:
        main(["doctor", *options])
    return end.value.code, capsys.readouterr().out


def _other(folder: Path, kind: str) -> Path:
    """Another `client` in `folder`."""
    place = folder / ("client.py" if kind == "module" else "client")
    if kind == "module":
        place.touch()
    else:
        place.mkdir()
    if kind == "package":
        (place / "__init__.py").touch()
    return place.resolve()


@pytest.mark.parametrize("kind", ["package", "module", "folder"])
def test_the_doctor_finds_what_an_import_would_find(tmp_path: Path, kind: str) -> None:
    place = _other(tmp_path, kind)
    program = (
        "import json, tacit.doctor as d, importlib; found = d.shadowed(); import client\n"
        "print(json.dumps([found, [*getattr(client, '__path__', [client.__file__])]]))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found, imported = json.loads(done.stdout)
    assert found == ({"client": str(place)} if imported == [str(place)] else {})
    assert imported == [str(place)] or kind == "folder"  # an installed package comes before a mere folder


@pytest.mark.usefixtures("quick")
def test_what_is_shadowed_makes_a_client_impossible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = _other(tmp_path, "package")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, output = _run(capsys)
    assert code == 1
    assert f"SHADOWED: `import client` takes {place}" in output
    assert "verdict: a client cannot run here as it is" in output


@pytest.fixture
def strange(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that lacks some packages and has one in another version."""
    version = importlib.metadata.version

    def other(name: str) -> str:
        if name in ("pandas", "ray", "opacus"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.40.0" if name == "flwr" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", other)


@pytest.mark.usefixtures("quick", "strange")
def test_what_is_missing_is_said_by_use(capsys: pytest.CaptureFixture[str]) -> None:
    missing = doctor.examine().missing
    assert missing["client"] == [
        "flwr 1.40.0 is installed, needed: ==1.41.0",
        "opacus is missing, needed: <1.7,>=1.6",
    ]
    assert missing["tables"] == ["pandas is missing, needed: >=2.2"]
    assert missing["simulation"] == ["pandas is missing, needed: >=2.2"]
    assert missing["ray"] == ["ray is missing, needed: ==2.55.1"]
    code, output = _run(capsys)
    assert code == 1
    assert "for tacit simulate: pandas is missing, needed: >=2.2; pip install 'tacit[simulation]'" in output


@pytest.mark.parametrize(("lacks", "code"), [("client", 1), ("tables", 0), ("ray", 0), ("processes", 0)])
@pytest.mark.usefixtures("quick")
def test_only_what_a_client_needs_decides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lacks: str, code: int
) -> None:
    missing: dict[str, list[str]] = {use: [] for use in doctor.USES}
    findings = doctor.Findings("3.11", {}, [], {}, {}, {**missing, lacks: ["this"]}, telemetry=False)
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    assert _run(capsys)[0] == code


def test_a_module_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torn.py").write_text("import nothing_of_this_name")
    (tmp_path / "deadly.py").write_text("import os; os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "IMPORTED", ("json", "torn"))
    assert doctor._probe() == ({"torn": "ModuleNotFoundError: No module named 'nothing_of_this_name'"}, [])
    monkeypatch.setattr(doctor, "IMPORTED", ("json", "deadly"))
    code, output = _run(capsys)
    assert code == 1
    assert "BROKEN: python: importing json, deadly ended the process: exit code 3" in output


@pytest.mark.usefixtures("quick")
def test_the_doctor_is_plain_when_piped_and_a_table_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = _run(capsys)[1]
    assert all(": " in line for line in plain.splitlines())
    assert "accelerators: none: training runs on the CPU\n" in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    table = _run(capsys)[1]
    assert "for Parquet files" in table and "for Parquet files: " not in table
    assert max(len(line) for line in table.splitlines()) <= 80
