"""Checkpoints: damaged, foreign, half written, on a full or broken disk."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.checkpoint import Checkpoint
from server.state import RunState, read_rounds
from strategies.rounds import Progress
from tacit.errors import StorageError
from tests.unit.run_folders import CONFIG, at, checkpoints, filled, model, progress, record, reopened


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def with_wrong_shapes(folder: Path) -> None:
    """Another model, with a manifest made for it."""
    shutil.rmtree(at(folder, 4))
    Checkpoint("another run", Progress(4, {"other": np.zeros(5, dtype=np.float32)}), record(4)).write(
        folder / "checkpoints"
    )


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "model flipped": lambda f: flip(at(f, 4) / "model.safetensors"),
    "strategy flipped": lambda f: flip(at(f, 4) / "strategy.safetensors"),
    "counters flipped": lambda f: flip(at(f, 4) / "counters.json"),
    "manifest flipped": lambda f: flip(at(f, 4) / "manifest.json"),
    "model cut short": lambda f: os.truncate(at(f, 4) / "model.safetensors", 20),
    "model empty": lambda f: os.truncate(at(f, 4) / "model.safetensors", 0),
    "manifest empty": lambda f: os.truncate(at(f, 4) / "manifest.json", 0),
    "manifest of nothing": lambda f: (at(f, 4) / "manifest.json").write_text("{}"),
    "manifest no table": lambda f: (at(f, 4) / "manifest.json").write_text("[]"),
    "no model": lambda f: (at(f, 4) / "model.safetensors").unlink(),
    "no files": lambda f: [path.unlink() for path in at(f, 4).iterdir()],
    "model of another round": lambda f: shutil.copy(at(f, 2) / "model.safetensors", at(f, 4)),
    "another round's folder": lambda f: (shutil.rmtree(at(f, 4)), shutil.copytree(at(f, 2), at(f, 4))),
    "another run's": with_wrong_shapes,
}


@pytest.mark.parametrize("case", DAMAGE)
def test_F6_a_damaged_checkpoint_is_not_read_and_the_one_before_is(tmp_path: Path, case: str) -> None:
    filled(tmp_path).close()
    DAMAGE[case](tmp_path)
    state = reopened(tmp_path)
    loaded = state.load()
    assert loaded is not None
    assert loaded.round == 3
    assert np.array_equal(loaded.arrays["z.weight"], model(3)["z.weight"])
    assert [row["round"] for row in read_rounds(tmp_path / "rounds.jsonl")] == [1, 2, 3]
    assert checkpoints(tmp_path) == [0, 1, 2, 3]
    state.save(progress(4), record(4))
    assert [row["round"] for row in read_rounds(tmp_path / "rounds.jsonl")] == [1, 2, 3, 4]
    state.close()


def test_F6_every_flipped_byte_of_a_checkpoint_is_seen(tmp_path: Path) -> None:
    filled(tmp_path, rounds=1).close()
    run = json.loads((tmp_path / "run.json").read_bytes())["run"]
    assert Checkpoint.read(at(tmp_path, 1), run) is not None
    for file in sorted(at(tmp_path, 1).iterdir()):
        content = file.read_bytes()
        for i in range(len(content)):
            file.write_bytes(content[:i] + bytes([content[i] ^ 0x10]) + content[i + 1 :])
            read = Checkpoint.read(at(tmp_path, 1), run)
            assert read is None, f"{file.name} at {i}"
        file.write_bytes(content)
    assert Checkpoint.read(at(tmp_path, 1), run) is not None


def test_F6_a_checkpoint_that_cannot_be_read_now_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk refuses today says nothing about the file; a round less would be the end of many a run."""
    filled(tmp_path).close()
    state, real = reopened(tmp_path), Path.read_bytes

    def broken(self: Path) -> bytes:
        if self == at(tmp_path, 4) / "model.safetensors":
            raise OSError(5, "Input/output error", str(self))
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", broken)
        with pytest.raises(StorageError, match=r"round-000004/model\.safetensors: Input/output error"):
            state.load()
        with pytest.raises(StorageError, match="Input/output error"):
            state.model_of(4)
    loaded = state.load()
    assert loaded is not None
    assert loaded.round == 4
    state.close()


def test_F6_without_any_whole_checkpoint_the_run_is_refused_and_nothing_removed(tmp_path: Path) -> None:
    filled(tmp_path).close()
    for number in range(5):
        flip(at(tmp_path, number) / "model.safetensors")
    for _ in range(2):
        state = reopened(tmp_path)
        with pytest.raises(StorageError, match="no checkpoint of this run is whole"):
            state.load()
        state.close()
    assert checkpoints(tmp_path) == [0, 1, 2, 3, 4]


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(tmp_path: Path) -> None:
    filled(tmp_path).close()
    shutil.rmtree(tmp_path / "checkpoints")
    state = reopened(tmp_path)
    with pytest.raises(StorageError, match="no checkpoint"):
        state.load()
    state.close()


def test_damaged_newer_checkpoints_do_not_crowd_out_whole_ones(tmp_path: Path) -> None:
    """With one kept, a damaged newest one would count as the one to keep."""
    filled(tmp_path, keep=1, best=1).close()
    flip(at(tmp_path, 4) / "model.safetensors")
    state = reopened(tmp_path, keep=1)
    loaded = state.load()
    assert loaded is not None
    assert loaded.round == 1
    state.save(progress(2, best=1), record(2))
    state.close()
    state = reopened(tmp_path, keep=1)
    loaded = state.load()
    assert loaded is not None
    assert loaded.round == 2
    state.close()


def test_an_unfinished_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    filled(tmp_path).close()
    at(tmp_path, 4).rename(tmp_path / "checkpoints" / ".unfinished")
    state = reopened(tmp_path)
    loaded = state.load()
    assert loaded is not None
    assert loaded.round == 3
    state.save(progress(4), record(4))
    assert not (tmp_path / "checkpoints" / ".unfinished").exists()
    state.close()


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_F2_a_folder_that_cannot_be_is_an_error_in_words(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" if kind == "file" else tmp_path / "file" / "run"
    with pytest.raises(StorageError, match="file"):
        RunState(folder, CONFIG, 0)


def test_F1_a_full_disk_stops_the_run_and_harms_nothing(tmp_path: Path) -> None:
    """The limit on the size of a file stands for the disk; every size at which some write breaks is tried."""
    code = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.unit.run_folders import progress, record, reopened
from tacit.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = reopened(Path(sys.argv[1]))
state.load()
for size in map(int, sys.argv[2].split(",")):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        state.save(progress(5), record(5))
    except StorageError as error:
        print("refused:", error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""
    filled(tmp_path).close()
    files = {p.name: p.stat().st_size for p in at(tmp_path, 4).iterdir()}
    sizes = sorted({0, 10, *(size - 1 for size in files.values())})
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), ",".join(map(str, sizes)), root],
        capture_output=True,
        text=True,
    )
    refused = done.stdout.splitlines()
    assert len(refused) == len(sizes), done.stderr
    assert all("too large" in line for line in refused)
    state = reopened(tmp_path)
    loaded = state.load()
    assert loaded is not None
    assert loaded.round == 4
    state.save(progress(5), record(5))
    assert [row["round"] for row in read_rounds(tmp_path / "rounds.jsonl")] == [1, 2, 3, 4, 5]
    state.close()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_F7_an_error_of_fsync_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = filled(tmp_path)

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(StorageError, match="Input/output error"):
            state.save(progress(5), record(5))
    state.close()
    state = reopened(tmp_path)
    loaded = state.load()
    assert loaded is not None
    assert loaded.round == 4
    state.close()


def test_D6_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_its_name_before_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = filled(tmp_path)
    calls: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        calls.append("fsync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        calls.append(f"rename {Path(target).name}")
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    state.save(progress(5), record(5))
    state.close()
    named = calls.index("rename round-000005")
    before = {call.strip(".").removesuffix(".tmp") for call in calls[:named]}
    for name in ("model.safetensors", "strategy.safetensors", "counters.json", "manifest.json"):
        assert f"fsync .{name}" in before
    assert calls[named - 1] == "fsync .unfinished"
    assert calls[named + 1 :] == ["fsync checkpoints", "fsync rounds.jsonl"]
