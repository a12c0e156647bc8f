"""`tacit audit verify`: one log by itself, and two sides against each other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.receipts import AuditedStore
from tacit.audit import (
    SERVER_FILE,
    SITE_FILE,
    Attempted,
    AuditLog,
    Receipted,
    Released,
    Requested,
)
from tacit.audit_check import check, compare, open_side, restore
from tacit.audit_cli import app
from tacit.errors import ConfigError, StorageError, TacitError
from tacit.privacy import chain
from tacit.privacy.chain_file import ChainFile
from tacit.secagg.identity import Identity
from tacit.secagg.receipt import Receipt
from tests.unit.small_federation import Federation
from tests.unit.test_receipts import on_disk

HASH = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Three rounds over sites on the disk."""
    made = Federation(
        tmp_path_factory.mktemp("audit"), "training.rounds=3", "privacy.record={epsilon=20.0, delta=1e-5}"
    )
    with made.rounds(made.sites.parent / "run", app=on_disk) as rounds:
        rounds.store = AuditedStore(rounds.store, rounds.run_id, AuditLog(made.sites / SERVER_FILE))
        rounds.run(made.initial())
    return made


@pytest.fixture
def kits(world: Federation, tmp_path: Path) -> Path:
    shutil.copytree(world.sites, tmp_path / "kits")
    return tmp_path / "kits"


def verify(*arguments: Path | str) -> tuple[int, str]:
    """Exit code and what is said, as `tacit` ends."""
    result = CliRunner().invoke(app, ["verify", *map(str, arguments)])
    code = result.exception.exit_code if isinstance(result.exception, TacitError) else result.exit_code
    return code, result.output


def test_both_sides_of_an_honest_federation_tell_one_story(kits: Path) -> None:
    for arguments in (
        (kits,),
        (kits / "2",),
        (kits, kits / "2"),
        (kits / "2", kits),
        (kits / "0", kits / "5"),
    ):
        code, said = verify(*arguments)
        assert (code, "whole" in said) == (0, True), said
    server, site = open_side(kits), open_side(kits / "2")
    assert (server.is_server, site.is_server) == (True, False)
    assert [type(event) for event in site.events] == [
        Requested, Attempted, Receipted, Requested, Attempted, Receipted, Requested, Attempted,
    ]  # fmt: skip
    assert [type(event) for event in server.events] == [Receipted, Released] * 3
    epsilons = [float(receipt.epsilon) for receipt in server.receipts]
    assert 0 < epsilons[0] < epsilons[1] < epsilons[2] <= 20.0
    assert [event.epsilon for event in server.of(Released)] == [r.epsilon for r in server.receipts]
    assert [event.model for event in server.of(Released)[:2]] == [
        event.model for event in site.of(Requested)[1:]
    ]
    for attempted, receipt in zip(site.of(Attempted), server.receipts, strict=True):
        assert attempted.ctx2 == receipt.context.hex() and attempted.index in receipt.survivors


def forged(kit: Path, **changes: Any) -> Receipt:
    """The second receipt, signed by the server once more with other contents."""
    old = open_side(kit).receipts[1]
    return replace(old, **changes).signed(Identity.load(kit / "server.key"))


def rewritten(path: Path, change: Callable[[int, dict[str, Any]], dict[str, Any] | None]) -> None:
    """A log whose owner has written it anew, so that its own chain is whole."""
    records = chain.decode(path.read_bytes(), path).records
    for file in (path, path.with_name(path.name + ".head")):
        file.unlink()
    log, _ = ChainFile.open(path)
    with log:
        for number, record in enumerate(records):
            fields = {k: v for k, v in record.items() if k not in ("sequence", "previous", "torn", "hash")}
            if (changed := change(number, fields)) is not None:
                log.append(changed)


def second(made: Receipt) -> Callable[[int, dict[str, Any]], dict[str, Any]]:
    """Puts another receipt in the place of the second."""

    def change(number: int, record: dict[str, Any]) -> dict[str, Any]:
        is_second = (
            record["event"] == "receipt" and Receipt.decode(bytes.fromhex(record["receipt"])).number == 2
        )
        return {**record, "receipt": made.encode().hex()} if is_second else record

    return change


def test_two_receipts_with_one_number_are_evidence_and_are_printed(kits: Path) -> None:
    """The server's log and a site's each look right, and contradict each other."""
    old = open_side(kits).receipts[1]
    new = forged(kits, aggregate=bytes(32))
    site = kits / "2" / SITE_FILE
    rewritten(site, second(new))
    assert verify(site, "--key", open_side(kits).key.hex())[0] == 0  # alone it is in order: it ends there
    code, said = verify(kits, kits / "2")
    assert code == 1 and "two receipts with the number 2" in said
    assert old.encode().hex() in said and new.encode().hex() in said


def test_a_servers_log_with_a_receipt_exchanged_is_not_linear(kits: Path) -> None:
    rewritten(kits / SERVER_FILE, second(forged(kits, epsilon="0.1")))
    code, said = verify(kits)
    assert code == 1 and "receipt 3 does not follow receipt 2" in said


WRONG: dict[str, tuple[Callable[[Path], Callable[[int, dict[str, Any]], dict[str, Any] | None]], str]] = {
    "signed by another": (
        lambda kits: second(open_side(kits).receipts[1].signed(Identity.generate(lambda n: b"x" * n))),
        "receipt 2: signature",
    ),
    "other survivors": (
        lambda kits: second(forged(kits, survivors=(0, 1, 2, 3))),
        "receipt 2: ",
    ),
    "other confirmations": (
        lambda kits: (
            lambda number, record: (
                {**record, "confirmations": {"0": "00" * 64}} if record["event"] == "receipt" else record
            )
        ),
        "other signatures than its own",
    ),
    "the first receipts left out": (
        lambda kits: lambda number, record: None if number < 2 else record,
        "the first receipts are missing",
    ),
    "a receipt that is none": (
        lambda kits: (
            lambda number, record: {**record, "receipt": "00"} if record["event"] == "receipt" else record
        ),
        "entry 1 of its receipts is none",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_servers_log_that_was_written_anew_is_found(kits: Path, case: str) -> None:
    change, message = WRONG[case]
    rewritten(kits / SERVER_FILE, change(kits))
    code, said = verify(kits)
    assert (code, message in said) == (1, True), said


def test_a_site_that_sent_no_vector_or_another_one_contradicts_the_receipt(kits: Path) -> None:
    rewritten(
        kits / "2" / SITE_FILE,
        lambda number, record: None if record["event"] == "attempt" and record["round"] == 1 else record,
    )
    assert "sent no vector for it" in verify(kits, kits / "2")[1]
    rewritten(
        kits / "3" / SITE_FILE,
        lambda number, record: {**record, "ctx2": HASH} if record["event"] == "attempt" else record,
    )
    code, said = verify(kits, kits / "3")
    assert code == 1 and said.count("masked in another context") == 3


def test_a_model_that_was_not_released_contradicts_the_release(kits: Path) -> None:
    rewritten(
        kits / "2" / SITE_FILE,
        lambda number, record: (
            {**record, "model": HASH} if record.get("round") == 2 and "model" in record else record
        ),
    )
    code, said = verify(kits / "2", kits)
    assert code == 1 and said.count("was given a model") == 1 and "round 2" in said


def test_D9_a_server_that_lacks_what_a_site_was_shown_is_found(kits: Path) -> None:
    rewritten(kits / SERVER_FILE, lambda number, record: record if number < 2 else None)
    assert verify(kits)[0] == 0  # a backup is in order by itself
    code, said = verify(kits, kits / "1")
    assert code == 1 and "lacks 1 receipts" in said


def test_a_site_that_was_away_has_a_gap_and_no_contradiction(kits: Path) -> None:
    rewritten(
        kits / "2" / SITE_FILE,
        lambda number, record: None if record["event"] == "receipt" and number < 3 else record,
    )
    assert verify(kits, kits / "2")[0] == 0


def test_a_log_that_is_not_there_or_whose_server_is_not_known(tmp_path: Path, kits: Path) -> None:
    with pytest.raises(ConfigError, match="no audit log"):
        open_side(tmp_path)
    shutil.copy(kits / SERVER_FILE, tmp_path / "mail.jsonl")
    code, said = verify(tmp_path / "mail.jsonl")
    assert code == 1 and "name the kit, or --key" in said
    key = Identity.load(kits / "server.key").public.hex()
    assert verify(tmp_path / "mail.jsonl", "--key", key)[0] == 0
    assert verify(tmp_path / "mail.jsonl", "--key", "ff" * 32)[0] == 1
    assert verify(tmp_path / "mail.jsonl", "--key", "no key")[0] == 2
    assert verify(tmp_path / "mail.jsonl", kits / "2")[0] == 0  # the key from the other's kit


def test_what_two_logs_of_one_site_say_is_compared_too(kits: Path) -> None:
    assert compare(open_side(kits / "1"), open_side(kits / "1")) == []
    assert check(open_side(kits / "1"), open_side(kits).key) == []


def test_what_a_site_shows_is_brought_back_under_the_servers_signature_alone(kits: Path) -> None:
    """A restored server takes nothing from a log that does not continue its own receipts, or that it has not signed."""
    rewritten(kits / SERVER_FILE, lambda number, record: record if number < 2 else None)
    server, log = open_side(kits), (kits / SERVER_FILE).read_bytes()
    true = open_side(kits / "2").receipts[1]
    stranger = Identity.generate(lambda n: b"x" * n)
    owner = Identity.load(kits / "server.key")
    for site, made in (("0", true.signed(stranger)), ("1", replace(true, previous=bytes(32)).signed(owner))):
        rewritten(kits / site / SITE_FILE, second(made))
        with pytest.raises(StorageError, match="try the log of another site"):
            restore(server, open_side(kits / site))
    assert (kits / SERVER_FILE).read_bytes() == log
    result = CliRunner().invoke(app, ["restore", str(kits), str(kits / "2")])
    assert (result.exit_code, result.output) == (0, "1 receipts brought back\n")
    assert open_side(kits).receipts[1] == true and verify(kits, kits / "2")[0] == 0
