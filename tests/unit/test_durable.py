"""A file or a folder that was said to be there is there after a power failure, with its name."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from select import select

import numpy as np
import pytest

from client.inbox import note_node
from client.kept import Kept
from client.sessions import FolderSessions, Session
from client.site import set_data
from server.attempts import AttemptFile
from server.runs import Queue
from server.sums import SumFile
from tacit import config
from tacit.durable import new_folder, write_file
from tacit.errors import StorageError
from tests.unit.disk_calls import Call, disk_calls, unnamed
from tests.unit.run_folders import filled
from tests.unit.test_attempts import BEGUN


class Encoded(Session):
    """A session of which nothing but its bytes is asked."""

    def __init__(self) -> None:
        pass

    def encode(self) -> bytes:
        return b"session"


def test_a_file_is_synced_then_renamed_then_its_folder_is_synced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with disk_calls() as calls:
        write_file(path, b"1")
    temporary = tmp_path / ".a.json.tmp"
    assert calls == [
        Call("make", temporary),
        Call("fsync", temporary),
        Call("rename", path),
        Call("fsync", tmp_path),
    ]
    assert path.read_bytes() == b"1" and path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_written_is_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_file(path, b"old")

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StorageError, match=f"^{path}: Input/output error"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_new_folder_has_its_name_on_the_disk_and_one_that_is_there_costs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with disk_calls() as calls:
        new_folder(folder)
        new_folder(folder)
    assert calls == [Call("make", folder), Call("fsync", tmp_path)]
    assert folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file: File exists"):
        new_folder(tmp_path / "file")


def test_D6_what_a_server_goes_on_from_is_on_the_disk_with_the_names_of_its_folders(tmp_path: Path) -> None:
    """The attempt that it is making, what it knows of earlier ones, and the checkpoints."""
    run = tmp_path / "run"
    run.mkdir()
    with disk_calls() as calls:
        filled(run, rounds=1).close()
        assert unnamed(calls) == set()
        SumFile(run / "sums.json", tmp_path / "state" / "counters.json").show({1: 2})
        assert unnamed(calls) == set()
        AttemptFile(run / "attempt").begin(BEGUN)
        assert unnamed(calls) == set()


def test_D6_what_a_site_goes_on_from_is_on_the_disk_with_its_name(tmp_path: Path) -> None:
    """A session that keeps a vector above all: the journal names it next, and it is never made again."""
    site = tmp_path / "site"
    site.mkdir()
    with disk_calls() as calls:
        FolderSessions(site).save(Encoded())
        assert unnamed(calls) == set()
        kept = Kept(site, "run", bytes(32))
        kept.put_aside(1, {"a": np.zeros(1, np.float32)})
        assert unnamed(calls) == set()
        kept.take_over(1)
        assert unnamed(calls) == set()
    note_node(site, 3)  # which need not last


def test_when_submit_returns_the_run_is_on_the_disk_with_its_name(tmp_path: Path) -> None:
    with disk_calls() as calls:
        run = Queue(tmp_path / "state" / "runs").submit(config.loads("name = 'x'"))
    assert run.folder.exists()
    assert unnamed(calls) == set()
    named = calls.index(Call("rename", run.folder))
    assert unnamed(calls[:named]) == set(), "what is in it is there before it has its name"


def test_a_site_toml_is_whole_whenever_the_power_fails(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('label = "a"\n')
    (tmp_path / "b.csv").touch()
    with disk_calls() as calls:
        set_data(tmp_path, tmp_path / "b.csv")
    assert calls[-3:] == [
        Call("fsync", tmp_path / ".site.toml.tmp"),
        Call("rename", path),
        Call("fsync", tmp_path),
    ]


def test_a_full_disk_is_said_in_words_where_a_server_notes_its_attempts(tmp_path: Path) -> None:
    """A folder that is in the way of the new file stands for it."""
    memory = SumFile(tmp_path / "sums.json", tmp_path / "counters.json")
    for name in (".sums.json.tmp", ".counters.json.tmp"):
        (tmp_path / name).mkdir()
    with pytest.raises(StorageError, match=r"\.sums\.json\.tmp: Is a directory"):
        memory.next_attempt(1)
    with pytest.raises(StorageError, match=r"\.counters\.json\.tmp: Is a directory"):
        memory.show({1: 1})


def test_a_file_is_its_owners_whatever_an_earlier_process_has_left(tmp_path: Path) -> None:
    path, other = tmp_path / "secret", tmp_path / "other"
    left = tmp_path / ".secret.tmp"
    left.write_bytes(b"")
    left.chmod(0o644)
    write_file(path, b"1")
    assert path.stat().st_mode & 0o777 == 0o600
    other.write_bytes(b"of somebody else")
    left.symlink_to(other)
    write_file(path, b"2")
    assert other.read_bytes() == b"of somebody else" and path.read_bytes() == b"2" and not path.is_symlink()


def test_a_process_that_training_has_left_behind_does_not_keep_the_lock(tmp_path: Path) -> None:
    sessions, (there, done) = FolderSessions(tmp_path), os.pipe()
    with sessions.alone():
        child = os.fork()
        if not child:
            select([there], [], [], 20)
            os._exit(0)
    began = time.monotonic()
    with sessions.alone():
        assert time.monotonic() - began < 5
    os.write(done, b"1")
    os.waitpid(child, 0)
