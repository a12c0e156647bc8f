"""The server's folder: what a crash, a disk, a second server or a stranger's file may do to it."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from server import cli
from server.state import RunState, read_rounds
from tacit import config
from tacit.errors import StorageError
from tests.unit.run_folders import CONFIG, checkpoints, filled, model, progress, record, reopened


def test_model_state_counters_and_record_come_back_together(tmp_path: Path) -> None:
    filled(tmp_path, best=2).close()
    state = reopened(tmp_path)
    loaded = state.load()
    assert loaded is not None
    assert (loaded.round, loaded.best_round, loaded.best_value, loaded.stale) == (4, 2, 0.5, 1)
    assert all(np.array_equal(loaded.arrays[name], array) for name, array in model(4).items())
    assert loaded.arrays["a.bias"].shape == ()
    assert np.array_equal(loaded.strategy["m\x1fdict\x1f000000\x1fa"], np.arange(3.0))
    assert read_rounds(tmp_path / "rounds.jsonl") == [record(n) for n in range(1, 5)]
    state.close()


@pytest.mark.parametrize(
    ("keep", "left"), [(0, [0, 1, 2, 3, 4]), (1, [4]), (3, [2, 3, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_D8_so_many_checkpoints_are_kept(tmp_path: Path, keep: int, left: list[int]) -> None:
    filled(tmp_path, keep=keep).close()
    assert checkpoints(tmp_path) == left
    assert [row["round"] for row in read_rounds(tmp_path / "rounds.jsonl")] == [1, 2, 3, 4]


def test_the_best_one_is_kept_too(tmp_path: Path) -> None:
    filled(tmp_path, keep=1, best=0).close()
    assert checkpoints(tmp_path) == [0, 4]


# -- rounds.jsonl ------------------------------------------------------------------------------------------------


def lines(folder: Path) -> list[bytes]:
    return (folder / "rounds.jsonl").read_bytes().splitlines(keepends=True)


LINES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "the last is missing": lambda rows: rows[:-1],
    "all are missing": lambda rows: [],
    "the last is cut short": lambda rows: [*rows[:-1], rows[-1][:-5]],
    "one is damaged": lambda rows: [rows[0], b"\x00" + rows[1][1:], *rows[2:]],
    "one is no record": lambda rows: [rows[0], b"[]\n", *rows[2:]],
    "one too many": lambda rows: [*rows, json.dumps(record(5)).encode() + b"\n"],
    "one twice": lambda rows: [*rows, rows[-1]],
    "one says something else": lambda rows: [rows[0].replace(b"0.1", b"0.9"), *rows[1:]],
}


@pytest.mark.parametrize("case", LINES)
def test_rounds_jsonl_agrees_with_the_checkpoints_after_a_crash(tmp_path: Path, case: str) -> None:
    filled(tmp_path).close()
    (tmp_path / "rounds.jsonl").write_bytes(b"".join(LINES[case](lines(tmp_path))))
    state = reopened(tmp_path)
    state.load()
    assert read_rounds(tmp_path / "rounds.jsonl") == [record(n) for n in range(1, 5)]
    state.close()


def test_a_line_that_no_checkpoint_can_give_back_is_an_error(tmp_path: Path) -> None:
    filled(tmp_path, keep=1).close()
    rows = lines(tmp_path)
    (tmp_path / "rounds.jsonl").write_bytes(b"".join([rows[0], b"x" + rows[1], *rows[2:]]))
    with pytest.raises(StorageError, match=r"rounds\.jsonl:2: damaged"):
        read_rounds(tmp_path / "rounds.jsonl")
    state = reopened(tmp_path, keep=1)
    with pytest.raises(StorageError, match="round 2 is missing"):
        state.load()
    state.close()


def test_a_reader_sees_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    assert read_rounds(path) == []
    path.write_bytes(b'{"round": 1}\n{"round": 2')
    assert read_rounds(path) == [{"round": 1}]
    path.write_bytes(b"")
    assert read_rounds(path) == []


# -- who may use the folder --------------------------------------------------------------------------------------


def test_F5_another_server_on_the_same_folder_is_refused_at_once(tmp_path: Path) -> None:
    state = filled(tmp_path)
    code = "import sys; from pathlib import Path; from server.state import RunState;"
    code += f"RunState(Path(sys.argv[1]), {CONFIG!r}, 0)"
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert "another server is working on this run" in other.stderr
    started = time.perf_counter()
    with pytest.raises(StorageError, match="another server"):
        reopened(tmp_path)
    assert time.perf_counter() - started < 10  # at once, on a machine however busy
    state.close()
    reopened(tmp_path).close()


def test_D10_a_run_goes_on_with_the_experiment_that_it_began_with(tmp_path: Path) -> None:
    filled(tmp_path).close()
    for _ in range(2):  # the lock of the refused one is given back
        with pytest.raises(StorageError, match="began with another experiment"):
            RunState(tmp_path, "name = 'y'", 0)
    state = reopened(tmp_path)
    assert state.load() is not None
    state.close()


def test_the_runs_id_stays_and_its_starts_are_counted(tmp_path: Path) -> None:
    first = filled(tmp_path)
    first.close()
    second = reopened(tmp_path)
    assert (second.run_id, first.starts, second.starts) == (first.run_id, 1, 2)
    second.close()
    assert RunState(tmp_path / "other", CONFIG, 0).run_id != first.run_id


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"run": "x"}', '{"run": "x", "config": "y", "starts": "z"}']
)
def test_a_damaged_run_json_is_refused_in_words(tmp_path: Path, content: str) -> None:
    filled(tmp_path).close()
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(StorageError, match=r"run\.json"):
        reopened(tmp_path)
    with pytest.raises(StorageError, match=r"run\.json"):
        RunState(tmp_path, CONFIG, 0, read_only=True)


def test_looking_at_a_run_changes_and_locks_nothing(tmp_path: Path) -> None:
    state = filled(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    seen = RunState(tmp_path, CONFIG, 0, read_only=True)
    assert seen.run_id == state.run_id
    assert np.array_equal(seen.model_of(2)["z.weight"], model(2)["z.weight"])
    with pytest.raises(StorageError, match="round-000009: missing or damaged"):
        seen.model_of(9)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    state.close()
    with pytest.raises(StorageError, match=r"run\.json: missing"):
        RunState(tmp_path / "nowhere", CONFIG, 0, read_only=True)
    assert not (tmp_path / "nowhere").exists()


def test_K2_only_the_owner_reads_the_folder(tmp_path: Path) -> None:
    state = filled(tmp_path / "run")
    state.finish(progress(4), "finished", 4)
    state.close()
    for path in (tmp_path / "run").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "run").stat().st_mode & 0o077 == 0


def test_the_released_model_is_that_of_the_chosen_round(tmp_path: Path) -> None:
    state = filled(tmp_path)
    state.finish(progress(4), "stopped early", 2)
    assert np.array_equal(load_file(tmp_path / "model.safetensors")["z.weight"], model(2)["z.weight"])
    assert state.result == {"run": state.run_id, "rounds": 4, "outcome": "stopped early", "model_round": 2}
    state.close()
    again = reopened(tmp_path)
    assert again.result == {}, "a run that has been taken up again has no result yet"
    again.close()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "run.json").write_text('{"run": "x"}'), r"run\.json: damaged"),
        (lambda folder: reopened(folder), "another server is working on this run"),
        (lambda folder: None, "began with another experiment"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named_before_anything_is_started_or_removed(
    tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    filled(tmp_path).close()
    held = spoil(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    experiment = config.loads("name = 'other'")
    with pytest.raises(StorageError, match=reason):
        cli.serve(experiment, tmp_path, tmp_path, port=0, num_clients=0)
    assert (tmp_path / "result.json").exists()
    assert not (tmp_path / "flower").exists()
    if isinstance(held, RunState):
        held.close()
    with pytest.raises(StorageError, match="File exists"):
        cli.serve(experiment, tmp_path / "run.json", tmp_path, port=0, num_clients=0)
