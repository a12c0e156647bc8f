"""What Flower's programs leave on the disk is kept within bounds."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from server import flower_files
from server.flower_files import rotate, set_aside, trim, used_bytes, watched


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """As much of Flower's schema as is touched; tests/integration/test_front_superlink.py has the real one."""
    path = tmp_path / "superlink.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(
            "PRAGMA journal_mode=wal;"
            "CREATE TABLE task (task_id BIGINT, finished_at TIMESTAMP);"
            "CREATE TABLE task_logs (task_id BIGINT, log VARCHAR);"
            "CREATE TABLE objects (content BLOB);"
            "INSERT INTO task VALUES (1, '2030-01-01'), (2, NULL);"
        )
        connection.executemany("INSERT INTO task_logs VALUES (?, ?)", [(1, "x" * 10_000), (2, "y")] * 20)
        connection.execute("INSERT INTO objects VALUES (zeroblob(3000000))")
    return path


def test_what_finished_runs_left_is_let_go_of_and_the_rest_stays(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_files, "SPARE_BYTES", 2_000_000)
    before = used_bytes(database)
    assert before > 3_200_000
    trim(database)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        assert connection.execute("SELECT DISTINCT task_id FROM task_logs").fetchall() == [(2,)]
        assert database.stat().st_size > 3_000_000, "less than what is worth the time is spare"
        connection.execute("DELETE FROM objects")  # as Flower does when a run has ended
    assert used_bytes(database) < 100_000, "space that is there to be used is not used"
    trim(database)
    assert database.stat().st_size < 100_000
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM task_logs").fetchall() == [(20,)]


def test_a_database_that_is_missing_damaged_or_locked_stops_nobody(database: Path, tmp_path: Path) -> None:
    trim(tmp_path / "none.db")
    assert used_bytes(tmp_path / "none.db") == 0 and not (tmp_path / "none.db").exists()
    (tmp_path / "damaged.db").write_bytes(b"no database" * 1000)
    trim(tmp_path / "damaged.db")
    assert used_bytes(tmp_path / "damaged.db") == 0
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert used_bytes(database) > 3_000_000, "a SuperLink that writes is no obstacle"


def test_a_database_is_looked_at_now_and_then(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look, asked = watched(database), []
    monkeypatch.setattr(flower_files, "used_bytes", lambda path: asked.append(path) or 7)
    assert [look(), look()] == [7, 7] and len(asked) == 1


def test_a_log_that_is_too_long_is_put_aside_and_its_writer_goes_on(tmp_path: Path) -> None:
    log, earlier = tmp_path / "program.log", tmp_path / "program.log.1"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"1" * 50)
        rotate(log, 100)
        assert not earlier.exists()
        writer.write(b"2" * 60)
        rotate(log, 100)
        assert (log.stat().st_size, earlier.stat().st_size) == (0, 110)
        writer.write(b"3" * 10)
        assert log.read_bytes() == b"3" * 10, "without a hole before it"
    set_aside(log)
    assert earlier.read_bytes() == b"3" * 10 and not log.exists()
    set_aside(log)
    rotate(log, 100)
