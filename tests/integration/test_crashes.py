"""`kill -9` of server and sites at named points and at random: no round is lost, none is applied twice, all is paid."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from client_points import CLIENT_POINTS, PAID
from crash_plans import PRIVATE
from crash_world import World, left, place
from evidence import check_evidence
from killing.sitecustomize import POINTS
from random_kills import RandomKills
from undisturbed import same_as_undisturbed

UNITS = pytest.mark.parametrize("privacy", [(), PRIVATE], ids=["without-privacy", "with-privacy"])
SECONDS = 20.0  # for each kill, on a machine that is busy with something else
REPEATS = int(os.environ.get("TACIT_TEST_REPEATS", "20"))  # of each kill, in the long tests
PATIENT = "secure_aggregation.deadline_seconds=60"  # hours beside other work: nobody is to be late for want of a core
SERVER_POINTS = [name for name in POINTS if name != "before-result"]


def kills_at_server_points(folder: Path, repeats: int, *overrides: str) -> World:
    points = SERVER_POINTS * repeats
    world = World(folder, f"training.rounds={len(points) + 1}", *overrides)
    place(world, "server", points)
    place(world, "server", ["before-result"] * repeats, len(points) + 1, every=0)
    world.run(seconds=SECONDS * len(points))
    assert left(world) == [], "a point was never reached"
    assert world.num_killed == len(points) + repeats
    return world


@UNITS
def test_D1_the_server_killed_at_each_named_point_loses_no_round(
    tmp_path: Path, privacy: tuple[str, ...]
) -> None:
    """The model is bit-equal to that of a run without kills, and everybody is in every sum."""
    world = kills_at_server_points(tmp_path, 1 if privacy else 3, *privacy)
    assert all(len(row["survivors"]) == len(world.names) - 1 for row in world.rounds)  # type: ignore[arg-type]
    same_as_undisturbed(world)
    check_evidence(world)


def test_D1_the_server_killed_five_times_at_one_point_of_a_round_loses_no_round(tmp_path: Path) -> None:
    """Clients answer three attempts of a round and no more."""
    points = ("attempt-noted", "before-confirmations", "sum-known")
    world = World(tmp_path, f"training.rounds={len(points) + 1}")
    for number, point in enumerate(points):
        place(world, "server", [point] * 5, number, every=0)
    world.run(seconds=SECONDS * 5 * len(points))
    assert left(world) == []
    same_as_undisturbed(world)
    check_evidence(world)


def kills_at_client_points(folder: Path, repeats: int, *overrides: str) -> World:
    names = [name for name in CLIENT_POINTS if set(PRIVATE) <= set(overrides) or name not in PAID] * repeats
    world = World(folder, f"training.rounds={len(names) + 1}", *overrides)
    for i, name in enumerate(names):  # one site after the other
        place(world, world.names[1 + i % (len(world.names) - 1)], [name], i)
    world.run(seconds=SECONDS * len(names))
    assert left(world) == []
    assert world.num_killed == len(names)
    return world


@UNITS
def test_D3_a_client_killed_at_each_named_point_uses_nothing_twice(
    tmp_path: Path, privacy: tuple[str, ...]
) -> None:
    """No key, nonce or mask, no second set of survivors; each round is complete, with it or without it."""
    world = kills_at_client_points(tmp_path, 1, *privacy)
    same_as_undisturbed(world)
    check_evidence(world)


def test_D3_more_sites_than_may_be_missing_are_waited_for_however_long_it_takes(tmp_path: Path) -> None:
    """They die with their vectors on the way, and are back after many deadlines: it is one attempt all the time."""
    world = World(tmp_path, "training.rounds=2", "secure_aggregation.deadline_seconds=0.5")
    victims = world.names[1:3]
    for name in victims:
        place(world, name, ["vector-made"], 1)
    world.start_all()
    try:
        deadline = time.monotonic() + SECONDS
        while any(world.processes[name].is_alive() for name in victims):
            assert time.monotonic() < deadline, world.said()
            time.sleep(0.01)
        time.sleep(5.0)
        assert world.num_rounds == 1
        assert world.processes["server"].is_alive(), world.said()
        world.run(seconds=SECONDS)
    finally:
        world.stop()
    assert world.num_killed == len(victims)
    assert [row["attempts"] for row in world.rounds] == [1, 1]
    same_as_undisturbed(world)
    check_evidence(world)


def random_kills(
    folder: Path, seed: int, count: int, rounds: int, *victims: str, overrides: tuple[str, ...] = ()
) -> None:
    """Kills of one, or with "all" of everybody at once."""
    world = World(folder, f"training.rounds={rounds}", *overrides)
    kills = RandomKills(
        world, seed, count, lambda rng: world.names if "all" in victims else [rng.choice(victims)]
    )
    world.run(kills, seconds=SECONDS * (count + rounds))
    assert kills.left == 0, "the run ended before all kills were made"
    assert [row["round"] for row in world.rounds] == list(range(1, rounds + 1))
    assert max(kills.recoveries, default=0.0) < 10
    same_as_undisturbed(world)
    check_evidence(world)


def test_D2_the_server_killed_at_random_moments_of_twenty_rounds_is_back_in_seconds(tmp_path: Path) -> None:
    random_kills(tmp_path, 1, 5, 20, "server")


@UNITS
def test_D4_server_and_sites_killed_together_lose_no_round(tmp_path: Path, privacy: tuple[str, ...]) -> None:
    random_kills(tmp_path, 2, 3, 14, "all", overrides=privacy)


@pytest.mark.slow
@UNITS
def test_D1_the_server_killed_twenty_times_at_each_named_point(
    tmp_path: Path, privacy: tuple[str, ...]
) -> None:
    world = kills_at_server_points(tmp_path, REPEATS, PATIENT, *privacy)
    assert all(len(row["survivors"]) == len(world.names) - 1 for row in world.rounds)  # type: ignore[arg-type]
    same_as_undisturbed(world)
    check_evidence(world)


@pytest.mark.slow
@UNITS
def test_D3_a_client_killed_twenty_times_at_each_named_point(
    tmp_path: Path, privacy: tuple[str, ...]
) -> None:
    world = kills_at_client_points(tmp_path, REPEATS, PATIENT, *privacy)
    same_as_undisturbed(world)
    check_evidence(world)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_D2_the_server_killed_two_hundred_times_at_random_moments(tmp_path: Path, seed: int) -> None:
    random_kills(tmp_path, 100 + seed, 10, 20, "server", overrides=(PATIENT,))


@pytest.mark.slow
@UNITS
def test_D4_server_and_sites_killed_together_twenty_times(tmp_path: Path, privacy: tuple[str, ...]) -> None:
    random_kills(tmp_path, 3, 20, 60, "all", overrides=(PATIENT, *privacy))


@pytest.mark.slow
@UNITS
def test_D4_anybody_killed_at_random_moments(tmp_path: Path, privacy: tuple[str, ...]) -> None:
    everybody = ("server", *(f"site-{i + 1}" for i in range(4)))
    random_kills(tmp_path, 4, 40, 120, *everybody, overrides=(PATIENT, *privacy))
