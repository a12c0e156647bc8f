"""`kill -9` of server and sites at named points and at random: no round is lost, none is applied twice, all is paid."""

from __future__ import annotations

from pathlib import Path

import pytest
from client_points import CLIENT_POINTS, PAID
from crash_plans import PRIVATE
from crash_world import World, left, place
from evidence import check_evidence
from killing.sitecustomize import POINTS
from undisturbed import same_as_undisturbed

UNITS = pytest.mark.parametrize("privacy", [(), PRIVATE], ids=["without-privacy", "with-privacy"])
SERVER_POINTS = [name for name in POINTS if name != "before-result"]


def kills_at_server_points(folder: Path, repeats: int, *overrides: str) -> World:
    points = SERVER_POINTS * repeats
    world = World(folder, f"training.rounds={len(points) + 1}", *overrides)
    place(world, "server", points)
    place(world, "server", ["before-result"], len(points) + 1)
    world.run()
    assert left(world) == [], "a point was never reached"
    assert world.num_killed == len(points) + 1
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


def kills_at_client_points(folder: Path, repeats: int, *overrides: str) -> World:
    names = [name for name in CLIENT_POINTS if overrides or name not in PAID] * repeats
    world = World(folder, f"training.rounds={len(names)}", *overrides)
    for i, name in enumerate(names):  # one site after the other
        place(world, world.names[1 + i % (len(world.names) - 1)], [name], i)
    world.run()
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
