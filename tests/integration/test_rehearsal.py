"""The six commands of a real federation, one after the other, on one machine: the tutorial is the test."""

import stat
from pathlib import Path

import pytest
from loopback import still_running

from server.state import read_rounds
from simulations.rehearsal import Rehearsed, rehearse
from tacit import config
from tacit.cli import main

pytestmark = [
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]

EXPERIMENT = """
name = "rehearsed"
[partition]
num_clients = 3
[task.model]
name = "logistic"
[training]
rounds = 2
local_steps = 1
[privacy.record]
epsilon = 8.0
delta = 1e-5
"""


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> Rehearsed:
    folder = tmp_path_factory.mktemp("rehearsal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STARTED_BY_TEST", str(folder))
        return rehearse(config.loads(EXPERIMENT), folder, said.append)


def test_a_secured_federation_of_separate_processes_runs_to_its_end(done: Rehearsed, said: list[str]) -> None:
    assert done.code == 0
    commands = [line.split()[2] + " " + line.split()[3] for line in said]
    assert commands == [
        "provision federation.toml",
        *["client enroll"] * 3,
        "provision collect",
        "server --kit",
        *["client run"] * 3,
        "submit experiment.toml",
    ]
    assert done.run is not None
    rows = read_rounds(done.run / "rounds.jsonl")
    assert [row["survivors"] for row in rows] == [["site-1", "site-2", "site-3"]] * 2
    assert (done.run / "model.safetensors").exists()
    statement = (done.run / "privacy-statement.md").read_text(encoding="utf-8")
    assert "all 3 members have signed it" in statement and done.run.name in statement
    assert "all 3 members have signed it" in (done.run / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_arrays_are_rehearsed_as_tables_are(tmp_path: Path) -> None:
    arrays = EXPERIMENT + '[data]\nsource = "digits"\n[task]\nkind = "array_classification"\n'
    made = rehearse(config.loads(arrays), tmp_path, lambda line: None)
    assert made.code == 0 and made.run is not None
    assert sorted(path.name for path in tmp_path.glob("kits/site-*/data.*")) == ["data.npz"] * 3
    assert (made.run / "model.safetensors").exists()


def test_it_leaves_no_process_behind(done: Rehearsed) -> None:
    assert still_running(done.folder) == []


def test_both_sides_audit_logs_tell_the_same_story(
    done: Rehearsed, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("site-1", "site-2", "site-3"):
        with pytest.raises(SystemExit) as end:
            main(
                [
                    "audit",
                    "verify",
                    str(done.folder / "kits" / "coordinator"),
                    str(done.folder / "kits" / label),
                ]
            )
        assert end.value.code == 0, capsys.readouterr()


def test_K2_every_file_of_the_server_is_closed_to_others(done: Rehearsed) -> None:
    state = done.folder / "kits" / "coordinator" / "state"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((done.folder / "kits" / "coordinator").stat().st_mode) == 0o700
    secrets = [*state.rglob("*.key"), *(done.folder / "kits").glob("*/*.key")]
    assert len(secrets) == 2 + 3 + 2 * 3  # SuperLink and executor; CA, TLS, identity; two of each site
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}


def test_K1_no_secret_of_a_site_is_at_the_coordinator(done: Rehearsed) -> None:
    kits = done.folder / "kits"
    own = [
        line
        for path in kits.glob("site-*/*.key")
        for line in path.read_bytes().splitlines()
        if b"-----" not in line
    ]
    for path in (kits / "coordinator").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(line in content for line in own), path


def test_a_second_rehearsal_does_not_go_into_the_files_of_the_first(
    done: Rehearsed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    with pytest.raises(SystemExit) as end:
        main(["rehearse", str(tmp_path / "experiment.toml"), "--keep", str(done.folder)])
    assert end.value.code == 2
    assert "is not empty" in capsys.readouterr().err
