"""Audit logs: what may stand in one, what must not, and what `tacit audit verify` finds."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client import submission
from client.app import LOG
from client.participant import run_of
from server.receipts import AuditedStore
from tacit import audit
from tacit.audit import (
    SERVER_FILE,
    SITE_FILE,
    Attempted,
    AuditLog,
    Event,
    NoAudit,
    Receipted,
    Refusal,
    Released,
    Requested,
    RosterAccepted,
    Started,
    Stopped,
    read,
)
from tacit.errors import Refused, StorageError
from tacit.logs import configure
from tacit.privacy import chain
from tacit.privacy.chain_file import ChainFile
from tests.unit.client_sites import answer, experiment, model, setup_request, write_site
from tests.unit.small_federation import Federation
from tests.unit.test_receipts import on_disk

HASH = "0123456789abcdef" * 4
ONE_OF_EACH: list[Event] = [
    Started("server", "0.1.0"),
    RosterAccepted(1, HASH),
    Requested("run-1", 1, 1, HASH, HASH, HASH),
    Refusal("train.tacit0", "budget-spent"),
    Attempted("run-1", 1, 1, 3, HASH),
    Receipted("00ff", {"0": "ab" * 64}),
    Released("run-1", 1, HASH, ("Nord-Süd", "west"), "1.25"),
    Stopped("server", "finished"),
]


# -- what may stand in a log


def test_every_kind_of_event_is_read_as_it_was_written(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log" / "audit.jsonl")
    log.write(*ONE_OF_EACH[:3])
    log.write(*ONE_OF_EACH[3:])
    assert log.read() == read(tmp_path / "log" / "audit.jsonl") == tuple(ONE_OF_EACH)
    assert {type(event) for event in ONE_OF_EACH} == set(audit.EVENTS.values())
    times = [json.loads(line)["time"] for line in (tmp_path / "log" / "audit.jsonl").read_text().splitlines()]
    assert all(time.endswith("+00:00") for time in times)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Refusal("train", "the cell in line 7 is 83"),
        lambda: Refusal("train", "Budget"),
        lambda: Refusal("train", "rate\n"),
        lambda: Refusal("train", "rate", -1),
        lambda: Refusal("train", "rate", 1.5),  # type: ignore[arg-type]
        lambda: Refusal("train", "rate", True),
        lambda: Requested("run-1", 1, 1, HASH, HASH[:-1], HASH),
        lambda: Requested("run-1", 1, 1, HASH, HASH.upper(), HASH),
        lambda: Requested("r" * 65, 1, 1, HASH, HASH, HASH),
        lambda: Requested("run\n1", 1, 1, HASH, HASH, HASH),
        lambda: Released("run-1", 1, HASH, ("a\x00",), "1"),
        lambda: Released("run-1", 1, HASH, ("a",), "one"),
        lambda: Receipted("not hex", {}),
        lambda: Receipted("00", {"0": "ab"}),
        lambda: Receipted("00", {"x": "ab" * 64}),
        lambda: Started("server", {"age": 83}),  # type: ignore[arg-type]
    ],
)
def test_an_event_holds_nothing_but_hashes_numbers_labels_codes_and_receipts(
    tmp_path: Path, make: Callable[[], Event]
) -> None:
    """Another field or form is an error, which does not repeat the value; nothing is written."""
    for log in (AuditLog(tmp_path / "log" / "audit.jsonl"), NoAudit()):
        with pytest.raises(ValueError, match="has not its form") as caught:
            log.write(Stopped("server", "failed"), make())
        assert "83" not in str(caught.value)
    assert not (tmp_path / "log").exists()


def test_a_reason_from_outside_is_kept_where_it_is_a_code() -> None:
    assert audit.code_of("budget-spent") == "budget-spent"
    for reason in ("", "83.5 years", "A", "x" * 41, "rate\nsecond line"):
        assert audit.code_of(reason) == "malformed"


# -- what is damaged


@pytest.fixture
def log(tmp_path: Path) -> Path:
    AuditLog(tmp_path / "log" / "audit.jsonl").write(*ONE_OF_EACH)
    return tmp_path / "log" / "audit.jsonl"


def flipped(data: bytes) -> bytes:
    at = data.index(b"budget-spent")
    return data[:at] + b"budget-spend" + data[at + 12 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a word changed": flipped,
    "the last line cut": lambda data: data[: data[:-1].rindex(b"\n") + 1],
    "a line taken out": lambda data: b"".join([*data.splitlines(True)[:2], *data.splitlines(True)[3:]]),
    "two lines swapped": lambda data: b"".join([*data.splitlines(True)[1::-1], *data.splitlines(True)[2:]]),
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_log_that_was_changed_or_cut_is_found(log: Path, what: str) -> None:
    log.write_bytes(DAMAGE[what](log.read_bytes()))
    with pytest.raises(StorageError, match="damaged or missing"):
        read(log)
    with pytest.raises(StorageError, match="damaged or missing"):
        AuditLog(log).write(Stopped("client", "stopped"))


def test_a_log_of_another_version_is_found(log: Path) -> None:
    for record in ({"event": "request", "cell": 83}, {"event": "diagnosis"}, {"entry": 1}):
        copy = log.parent / "copy.jsonl"
        copy.write_bytes(chain.encode({"time": "", **record}, 1, chain.GENESIS, b"")[0])
        with pytest.raises(StorageError, match="record 1 is no event"):
            read(copy)


def test_a_copy_without_its_head_can_be_read_and_needs_no_lock(log: Path, tmp_path: Path) -> None:
    shutil.copy(log, tmp_path / "sent-by-mail.jsonl")
    file, _ = ChainFile.open(log)
    with file:
        assert read(tmp_path / "sent-by-mail.jsonl") == read(log) == tuple(ONE_OF_EACH)


# -- what a site notes, and what must not be in it


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Everything that is logged, on the level of debugging, in the form in which commands write it."""
    lines: list[str] = []

    class Stream:
        def write(self, text: str) -> None:
            lines.append(text)

        def flush(self) -> None:
            pass

    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    configure("json", logging.DEBUG, Stream())  # type: ignore[arg-type]
    yield lines
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"roster": bytes(32)}, "context"),
        ({"round_number": 9}, "round"),
        ({"receipt_head": b"x" * 32}, "receipts"),
    ],
)
def test_a_refusal_is_in_the_sites_log_with_its_code(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    private = experiment()
    folder, arrays = write_site(tmp_path / "north"), model(private)
    run = run_of(private.to_toml())
    body = setup_request(run, arrays, **changes)
    reply = answer(folder, private, "train.tacit0", arrays, sessions="folder", body=body)
    assert reply.error.reason == f"refused:{reason}"
    assert read(folder / SITE_FILE) == (Refusal("train.tacit0", reason),)


def test_a_code_that_follows_from_records_stays_in_the_sites_own_log(
    tmp_path: Path, monkeypatch: Any
) -> None:
    def refuse(*arguments: object) -> None:
        raise Refused("not-finite", "line 7 has 8342")

    monkeypatch.setattr(submission, "deal", refuse)
    folder = write_site(tmp_path / "north")
    reply = answer(folder, experiment(), "train.tacit1", sessions="folder", body=b"x")
    assert reply.error.reason == "refused:unavailable"
    assert read(folder / SITE_FILE) == (Refusal("train.tacit1", "not-finite"),)


def test_K1_no_planted_value_is_in_any_log(tmp_path: Path, logged: list[str], monkeypatch: Any) -> None:
    """A federation on the disk with a cell, a key and a metric that can be looked for; one site's task breaks."""
    planted = "7083.4142"
    federation = Federation(tmp_path / "sites", "training.rounds=2", "evaluation.metrics=true")
    victim = federation.sites / "1"
    data = next(victim.glob("data.*"))
    text = data.read_text().splitlines()
    cells = text[1].split(",")
    at = next(i for i, cell in enumerate(cells) if "." in cell)
    cells[at] = planted
    data.write_text("\n".join([text[0], ",".join(cells), *text[2:]]) + "\n")
    secrets = [planted, (victim / "identity.key").read_text().splitlines()[1]]

    def what(message: Any, context: Any) -> Any:
        if context.node_config["partition-id"] == 1 and message.metadata.message_type == "train.tacit1":
            LOG.error("a library's own words", exc_info=ValueError(f"could not convert {planted!r}"))
        return on_disk(message, context)

    with federation.rounds(tmp_path / "run", app=what) as rounds:
        rounds.store = AuditedStore(rounds.store, rounds.run_id, AuditLog(federation.sites / SERVER_FILE))
        rounds.run(federation.initial())
    logs = [path.read_text() for path in federation.sites.rglob("audit.jsonl")] + logged
    assert len(logs) > 7 and any("ValueError" in line for line in logged)
    assert [line for line in logs for secret in secrets if secret in line] == []
    written = {key for log in logs[:7] for line in log.splitlines() for key in json.loads(line)}
    assert written <= {*audit.FORMS, "time", "event", "sequence", "previous", "torn", "hash"}
