"""The order of system calls around what leaves a process, and what is left of them when the machine loses its power."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from crash_plans import PRIVATE
from crash_world import World
from evidence import check_evidence
from power_loss import cuts, lost_in
from spool import exchanges
from syscalls import Call, record, recorded, trace, traced, wait_to_be_traced

from tacit.privacy.accountant import compose, epsilon_rdp
from tacit.privacy.ledger import Entry, Ledger
from tacit.secagg.journal import FileJournal

ENOUGH = 4  # rounds
SITE, NUMBER = "site-2", 1
LEDGER, JOURNAL = "ledger/ledger.jsonl", "journal/journal.jsonl"
VECTOR = "train.tacit2"
DELTA = 1e-5


def watched(name: str) -> None:
    """In the process."""
    if name in ("server", SITE):
        record(name)
        wait_to_be_traced(name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Some rounds, in which the calls of the server and of one site were written down."""
    world = World(tmp_path_factory.mktemp("order"), *PRIVATE, change=watched)
    world.start_all()
    tracers = [trace(world.folder, name, world.processes[name]) for name in ("server", SITE)]
    world.run(until=lambda: world.num_rounds >= ENOUGH)
    for tracer in tracers:
        if tracer is not None:
            tracer.communicate(timeout=30)
    check_evidence(world)
    return world


def calls_of(world: World, name: str) -> Iterator[list[Call]]:
    """As the process has written them down, and as strace has seen them, if it could."""
    yield recorded(world.folder, name)
    if (world.folder / f"strace-{name}").exists():
        yield traced(world.folder, name)


def answers(world: World) -> dict[str, str]:
    """File of each answer of the site -> type of its request."""
    return {
        str(exchange.path): exchange.asked.metadata.message_type
        for exchange in exchanges(world.spool)
        if exchange.node == NUMBER + 2 and not exchange.answer.has_error()
    }


def sendings(calls: Sequence[Call], kinds: Mapping[str, str], *wanted: str) -> list[int]:
    """Places of the calls by which something of these types is sent."""
    return [i for i, c in enumerate(calls) if c.kind == "rename" and kinds.get(c.path) in wanted]


def unsynced(calls: Sequence[Call]) -> set[str]:
    """Chains of records, and their heads, whose last write is not on the disk."""
    dirty = set()
    for call in calls:
        if call.path.endswith((".jsonl", ".jsonl.head")):
            (dirty.add if call.kind == "write" else dirty.discard)(call.path)
    return dirty


def unnamed(calls: Sequence[Call], folder: Path) -> set[str]:
    """What was made in or below a folder and may be gone after a crash, since the folder around it was not synced."""
    made: set[str] = set()
    for call in calls:
        if call.kind == "create" and Path(call.path).is_relative_to(folder):
            made.add(call.path)
        elif call.kind == "fsync":
            made = {path for path in made if str(Path(path).parent) != call.path}
    return made


def written(calls: Sequence[Call], path: Path | str) -> list[int]:
    return [i for i, c in enumerate(calls) if c.kind == "write" and c.path == str(path)]


def test_D6_ledger_and_journal_are_on_the_disk_before_the_first_byte_of_a_vector(world: World) -> None:
    """And before anything else that leaves a site; the names of their files and folders, too."""
    site, kinds = world.sites / str(NUMBER), answers(world)
    for calls in calls_of(world, SITE):
        vectors = sendings(calls, kinds, VECTOR)
        assert len(vectors) >= ENOUGH
        for place in sendings(calls, kinds, *kinds.values()):
            assert unsynced(calls[:place]) == set(), kinds[calls[place].path]
            for folder in (site / "ledger", site / "journal"):
                assert unnamed(calls[:place], folder) == set()
        for before, place in zip([0, *vectors], vectors, strict=False):
            debit, *_ = written(calls[before:place], site / LEDGER)
            *_, masked = written(calls[before:place], site / JOURNAL)
            assert debit < masked, "debited first, then journalled, then sent"
            kept = [call for call in calls[before : before + masked] if "sessions" in call.path]
            assert kept[-1] == Call("fsync", str(site / "sessions")), (
                "a vector is kept before it is journalled"
            )
        for place in sendings(calls, kinds, "train.tacit3"):
            vector = max(i for i in vectors if i < place)
            assert written(calls[vector:place], site / JOURNAL), "a set was signed before it was journalled"


def test_D6_step_receipt_and_checkpoint_are_on_the_disk_before_the_next_request(world: World) -> None:
    kinds = {str(path): kind for path, kind in world.requests()}
    audit, steps = world.sites / "state" / "audit.jsonl", [f"train.tacit{i}" for i in range(5)]
    for calls in calls_of(world, "server"):
        checkpoints = [i for i, c in enumerate(calls) if c.kind == "rename" and "/round-" in c.path]
        invitations = [
            next(i for i in sendings(calls, kinds, "train.tacit0") if i > done)
            for done in checkpoints[:ENOUGH]
        ]
        for place in sendings(calls, kinds, *steps):
            assert unsynced(calls[:place]) == set()
            assert unnamed(calls[:place], world.state / "attempt") == set()
        for number, (done, invited) in enumerate(zip(checkpoints, invitations, strict=False)):
            synced = [Path(c.path) for c in calls[:done] if c.kind == "fsync" and ".unfinished" in c.path]
            assert {path.name for path in synced[-5:]} >= {".model.safetensors.tmp", ".unfinished"}
            assert Call("fsync", str(Path(calls[done].path).parent)) in calls[done:invited]
            assert len(written(calls[:done], audit)) >= 2 * number, (
                "receipt and release come before the checkpoint"
            )
        for number, (before, after) in enumerate(pairwise(steps)):
            for asked in sendings(calls, kinds, after)[:: len(world.names) - 1]:
                last = max(i for i in sendings(calls, kinds, before) if i < asked)
                since = [(call.kind, Path(call.path)) for call in calls[last:asked]]
                assert ("rename", world.state / "attempt" / f"{number}.json") in since
                assert ("fsync", world.state / "attempt") in since


def test_D7_a_site_that_loses_its_power_anywhere_has_paid_for_all_that_has_left_it(
    world: World, tmp_path: Path
) -> None:
    """Cut at each write, fsync and sending, with what was not synced there, gone, or torn at a sector of 512 bytes."""
    site, kinds, sent = world.sites / str(NUMBER), answers(world), 0
    calls = recorded(world.folder, SITE)
    with Ledger.open(site / LEDGER) as ledger:
        entries = ledger.entries
    num_states = 0
    for place, files in cuts(calls, site, (LEDGER, JOURNAL)):
        sent = len(sendings(calls[:place], kinds, VECTOR))
        for state in lost_in(files, tmp_path / str(place)):
            check_recovered(state, entries, sent)
            num_states += 1
    assert sent >= ENOUGH
    assert num_states > 50 * ENOUGH


def check_recovered(site: Path, entries: Sequence[Entry], sent: int) -> None:
    """Epsilon is at least that of the vectors that have left, and the newest of them is never masked again."""
    released = compose(*(entry.event for entry in entries[:sent]))
    with Ledger.open(site / LEDGER, durable=False) as ledger:
        assert ledger.spent(DELTA) >= epsilon_rdp(released, DELTA)
        assert len(ledger.entries) + ledger.num_torn >= sent
    with FileJournal.open(site / JOURNAL, durable=False) as journal:
        for attempt in journal.runs.values():
            assert attempt.round > sent or attempt.ctx2, "it could be masked once more"
        assert sent == 0 or journal.runs
