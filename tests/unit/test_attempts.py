"""A server that is killed in the middle of a secure sum goes on with the same attempt."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.attempts import AttemptFile
from server.sums import SumFile
from strategies.attempts import Begun, Step
from strategies.rounds import Rounds
from strategies.secure_grid import SecureAggregationGrid
from tacit.errors import StorageError
from tests.unit.small_federation import Arrays, Federation, Misbehaving, is_step, opened_sums, same


class Killed(BaseException):
    """No handler of the product's takes it for an error of its own."""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """n = 6, D = 2, without privacy: an update is sent once."""
    return Federation(tmp_path_factory.mktemp("sites"), "training.rounds=2")


@pytest.fixture(scope="module")
def undisturbed(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    return federation.run(tmp_path_factory.mktemp("undisturbed"))


def started(rounds: Rounds, folder: Path) -> None:
    """A server process begins, or begins again: all that it knows is in `folder`."""
    grid = rounds.grid
    assert isinstance(grid, SecureAggregationGrid)
    coordinator = replace(
        grid._coordinator, memory=SumFile(folder / "sums.json"), attempts=AttemptFile(folder / "attempt")
    )
    rounds.grid = SecureAggregationGrid(grid._grid, rounds.strategy, grid._agreement, coordinator)


def dies(patch: pytest.MonkeyPatch, name: str, step: str = "", when: str = "before") -> None:
    """The next time that this method of the grid is called, for this step if one is named."""
    original: Callable[..., Any] = getattr(SecureAggregationGrid, name)

    def deadly(self: SecureAggregationGrid, *arguments: Any) -> Any:
        if step and arguments[0] != step:
            return original(self, *arguments)
        if when == "after":
            original(self, *arguments)
        raise Killed

    patch.setattr(SecureAggregationGrid, name, deadly)


POINTS = {
    "before M0": ("_request", "tacit0", "before"),
    "before M1": ("_request", "tacit1", "before"),
    "before M2": ("_request", "tacit2", "before"),
    "before M3": ("_request", "tacit3", "before"),
    "before M4": ("_request", "tacit4", "before"),
    "before the receipt": ("_opened", "", "before"),
    "after the receipt": ("_opened", "", "after"),
}


@pytest.mark.parametrize("point", POINTS)
def test_D1_a_server_killed_in_an_attempt_goes_on_with_it(
    federation: Federation, undisturbed: Arrays, tmp_path: Path, point: str
) -> None:
    vectors: dict[int, set[bytes]] = {}

    def look(message: Any, answer: Callable[[], Any], site: int) -> Any:
        reply = answer()
        if is_step(message, "tacit2"):
            vectors.setdefault(site, set()).add(reply.content["vector"]["words"].data)
        return reply

    with federation.rounds(tmp_path / "state", app=Misbehaving(look)) as rounds, opened_sums() as opened:
        started(rounds, tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            dies(patch, *POINTS[point])
            with pytest.raises(Killed):
                rounds.run(federation.initial())
        receipts = len(rounds.grid._coordinator.receipts.receipts)  # type: ignore[attr-defined]
        started(rounds, tmp_path)
        assert same(rounds.run(federation.initial()).arrays, undisturbed)
        attempts = SumFile(tmp_path / "sums.json")
        assert (attempts.round, attempts.attempt) == (2, 1), "it was one attempt all the time"
        assert {len(sent) for sent in vectors.values()} == {2}, "one vector of each site in each round"
        assert len(opened) == 2 + ("receipt" in point)
        total = rounds.grid._coordinator.receipts.receipts  # type: ignore[attr-defined]
        assert [receipt.round for receipt in total[-2:]] == [1, 2], "one receipt for each sum"
        assert receipts == len(total) - (1 if point == "after the receipt" else 2)


@pytest.mark.parametrize("number", range(5))
def test_a_steps_record_is_kept_before_the_next_steps_requests_go_out(
    federation: Federation, tmp_path: Path, number: int
) -> None:
    with federation.rounds(tmp_path / "state") as rounds, pytest.MonkeyPatch.context() as patch:
        started(rounds, tmp_path)
        dies(patch, "_request", f"tacit{number}")
        with pytest.raises(Killed):
            rounds.run(federation.initial())
    _, steps = AttemptFile(tmp_path / "attempt").kept() or pytest.fail("nothing is kept")
    assert len(steps) == number
    assert all(len(step.answers) == 6 for step in steps[:3])


def test_an_attempt_at_another_sum_is_not_gone_on_with(
    federation: Federation, undisturbed: Arrays, tmp_path: Path
) -> None:
    with federation.rounds(tmp_path / "state") as rounds:
        started(rounds, tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            dies(patch, "_request", "tacit2")
            with pytest.raises(Killed):
                rounds.run(federation.initial())
        (tmp_path / "sums.json").unlink()  # as if it were of another round
        started(rounds, tmp_path)
        assert same(rounds.run(federation.initial()).arrays, undisturbed)


def test_a_sum_has_one_receipt_also_when_another_run_has_written_one_since(
    federation: Federation, undisturbed: Arrays, tmp_path: Path
) -> None:
    with federation.rounds(tmp_path / "state") as rounds:
        started(rounds, tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            dies(patch, "_opened", when="after")
            with pytest.raises(Killed):
                rounds.run(federation.initial())
        chain = rounds.grid._coordinator.receipts  # type: ignore[attr-defined]
        own = chain.receipts[-1]
        other = replace(own, number=own.number + 1, previous=chain.head, context=bytes(32), run="another")
        chain.add(other.signed(rounds.grid._coordinator.identity), {})  # type: ignore[attr-defined]
        started(rounds, tmp_path)
        assert same(rounds.run(federation.initial()).arrays, undisturbed)
        assert [receipt.context for receipt in chain.receipts].count(own.context) == 1


def test_B34_a_journal_that_goes_back_is_known_after_a_restart_and_in_another_run(
    federation: Federation, tmp_path: Path
) -> None:
    """Else every client refuses the cohort that it is in, attempt after attempt."""
    counters = tmp_path / "state" / "counters.json"
    with federation.rounds(tmp_path / "state") as rounds:
        memory = SumFile(tmp_path / "sums.json", counters)
        grid = rounds.grid
        grid._coordinator = replace(grid._coordinator, memory=memory)  # type: ignore[attr-defined]
        rounds.run(federation.initial())
    shown = dict(memory.counters)
    assert len(shown) == 6 and min(shown.values()) >= 2
    assert SumFile(tmp_path / "sums.json", counters).counters == shown
    other = SumFile(tmp_path / "other-run.json", counters)
    assert other.counters == shown
    other.show({1: shown[1] + 5})
    memory.show({2: shown[2] + 1, 1: 1})
    expected = shown | {1: shown[1] + 5, 2: shown[2] + 1}
    assert SumFile(tmp_path / "sums.json", counters).counters == expected
    counters.write_text("[1]")
    with pytest.raises(StorageError, match="delete it"):
        SumFile(tmp_path / "sums.json", counters)


BEGUN = Begun(b"request", b"s" * 32, (1, 2, 5), {1: 7, 2: 9})
STEPS = [
    Step((b"a", b"bc"), b"", {11: 100}, {}),
    Step((), np.arange(3, dtype="<u4").tobytes(), {}, {"tag": 1}),
]


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    log = AttemptFile(tmp_path / "attempt")
    assert log.kept() is None
    log.drop()
    log.begin(BEGUN)
    assert AttemptFile(tmp_path / "attempt").kept() == (BEGUN, [])
    for number, step in enumerate(STEPS):
        log.keep(number, step)
    assert AttemptFile(tmp_path / "attempt").kept() == (BEGUN, STEPS)
    log.begin(BEGUN)
    assert log.kept() == (BEGUN, []), "another attempt begins without the steps of the last"
    log.drop()
    assert log.kept() is None
    assert list(tmp_path.iterdir()) == []


def test_K2_the_servers_key_of_an_attempt_is_closed_to_others_and_not_shown(tmp_path: Path) -> None:
    log = AttemptFile(tmp_path / "attempt")
    log.begin(BEGUN)
    log.keep(0, STEPS[1])
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "attempt").iterdir()} == {0o600}
    assert (tmp_path / "attempt").stat().st_mode & 0o777 == 0o700
    assert "sss" not in repr(BEGUN)


@pytest.mark.parametrize("name", ["begun.json", "0.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"request": 3}'])
def test_F6_a_damaged_record_is_an_error_in_words(tmp_path: Path, name: str, content: str) -> None:
    log = AttemptFile(tmp_path / "attempt")
    log.begin(BEGUN)
    log.keep(0, STEPS[0])
    (tmp_path / "attempt" / name).write_text(content)
    with pytest.raises(StorageError, match="attempt"):
        log.kept()
