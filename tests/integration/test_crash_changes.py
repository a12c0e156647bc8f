"""A run that is taken up again with something changed: its experiment, its roster, the clocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from crash_plans import PRIVATE
from crash_world import World
from evidence import check_evidence
from spool import exchanges, get, put
from undisturbed import same_as_undisturbed
from wrong_clock import DAY, follow, set_clock

from tacit import config
from tacit.secagg.identity import Identity
from tacit.secagg.signed_roster import SignedRoster

CHANGES = {
    "sigma": "privacy.record.epsilon=10.0",
    "delta": "privacy.record.delta=2e-5",
    "clip norm of a record": "privacy.record.max_grad_norm=0.5",
    "clip norm of an update": "secure_aggregation.update_clip=0.5",
    "rounds": "training.rounds=15",
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A run that stands still after some rounds."""
    world = World(tmp_path_factory.mktemp("stopped"), *PRIVATE)
    world.run(until=lambda: world.num_rounds >= 2)
    return world


@pytest.mark.parametrize("change", CHANGES)
def test_D10_a_run_is_not_resumed_with_another_experiment(stopped: World, change: str) -> None:
    """Nobody is asked for anything."""
    before, rounds = stopped.experiment, stopped.num_rounds
    changed = config.loads(before.to_toml(), overrides=(CHANGES[change],))
    assert changed.to_toml() != before.to_toml()
    stopped.experiment = changed
    try:
        stopped.start("server")
        server = stopped.processes.pop("server")
        server.join(60)
    finally:
        stopped.experiment = before
    assert server.exitcode == 1
    assert "this run began with another experiment" in (stopped.folder / "server.log").read_text()
    assert stopped.num_rounds == rounds
    newest = max(stopped.spool.iterdir())
    assert not list(newest.rglob("*.asked")) or newest.name == "00000"
    stopped.check()


def other_roster(world: World) -> bytes:
    """The same members, who have agreed on something else."""
    roster = SignedRoster.decode((world.sites / "roster.json").read_bytes()).roster
    signed = SignedRoster(replace(roster, n_max=roster.n_max + 1))
    for i in range(len(world.names) - 1):
        signed = signed.sign(Identity.load(world.sites / str(i) / "identity.key"))
    return signed.encode()


def put_roster(world: World, roster: bytes, *folders: Path) -> None:
    for folder in folders:
        (folder / "roster.json").unlink()  # the folders share it
        (folder / "roster.json").write_bytes(roster)


def test_D10_a_server_with_a_roster_of_its_own_is_given_nothing_until_all_have_it(tmp_path: Path) -> None:
    """Then what was paid before is still in the ledgers, and what is paid now is added to it."""
    world = World(tmp_path, *PRIVATE)
    world.run(until=lambda: world.num_rounds >= 2)
    rounds, paid = world.num_rounds, [len(world.entries(i)) for i in range(4)]
    roster = other_roster(world)
    put_roster(world, roster, world.sites)
    world.start_all()
    server = world.processes["server"]
    server.join(120)
    world.stop()
    assert server.exitcode == 1
    assert "sites refused: context (4)" in (world.folder / "server.log").read_text()
    assert world.num_rounds == rounds
    assert [len(world.entries(i)) for i in range(4)] == paid
    put_roster(world, roster, *(world.sites / str(i) for i in range(4)))
    world.run()
    same_as_undisturbed(world)
    check_evidence(world)
    assert all(len(world.entries(i)) >= 14 for i in range(4))


def test_D11_clocks_that_jump_by_a_day_cost_no_round_and_let_no_message_in_twice(tmp_path: Path) -> None:
    world = World(tmp_path, *PRIVATE, change=follow)
    # round -> whose clock jumps then, and by how much; then all are right again
    jumps = {
        1: {"site-1": DAY},
        2: {"site-1": -DAY},
        4: {"server": DAY},
        5: {"server": -DAY, "site-2": DAY, "site-3": DAY},
        7: dict.fromkeys(world.names, DAY),
        8: dict.fromkeys(world.names, -DAY),
        10: {},
    }
    done = set()

    def jump() -> None:
        # In the middle of a round: when sites have been asked for it.
        for number, clocks in jumps.items():
            if number not in done and world.num_rounds >= number:
                done.add(number)
                for name in world.names:
                    set_clock(world.folder, name, clocks.get(name, 0.0))

    world.run(jump)
    assert done == set(jumps)
    assert all(len(row["survivors"]) == 4 for row in world.rounds), "a clock is no reason to be left out"  # type: ignore[arg-type]
    same_as_undisturbed(world)
    check_evidence(world)
    replayed(world)


def replayed(world: World) -> None:
    """Everything that a site was ever asked is asked again, a day later: nothing that is new leaves it."""
    answered = {e.asked.metadata.message_id: e.answer for e in exchanges(world.spool) if e.node == 3}
    folder = world.spool / "00099"
    (folder / "3" / "taken").mkdir(parents=True)
    set_clock(world.folder, "site-2", DAY)
    for number, path in enumerate(sorted(world.spool.glob("*/3/taken/*.asked"), key=lambda path: path.name)):
        message = get(path)
        message.metadata.__dict__.update(_message_id=f"00099-{number:06d}", _run_id=99)
        put(folder / "3" / f"00099-{number:06d}.asked", message)
    paid = world.entries(1)
    world.start("site-2")
    while len(list(folder.glob("*.answer"))) < number + 1:
        assert world.processes["site-2"].exitcode is None, world.said()
    world.stop()
    before = list(answered.values())
    for number, path in enumerate(sorted(folder.glob("*.answer"))):
        again = get(path)
        if not again.has_error():
            assert again.content["tacit"] == before[number].content["tacit"], (
                "a replayed message was answered anew"
            )
    assert world.entries(1) == paid
    check_evidence(world)
