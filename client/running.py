"""`tacit client run`: an agent for one site's folder, in a federation or on loopback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.site import Site
from tacit.errors import ConfigError, TacitError
from tacit.processes import LOOPBACK, interrupted_once, leave_no_core

if TYPE_CHECKING:
    from client.flower_wire import Wire

PROFILES: Final = ("", "edge")
SERVICE: Final = "client"  # its name in grpc.health.v1: whether this site is connected


def check_profile(profile: str) -> None:
    """Raises `ConfigError` for a profile that there is not, and settles what has to be before torch is imported."""
    if profile not in PROFILES:
        raise ConfigError('there is one profile: "edge"', key="--profile")
    if profile == "edge":
        os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def run_on_loopback(folder: Path, superlink: str, profile: str, health_port: int) -> None:
    """Takes part in a rehearsal on this machine, without TLS and without enrolment, until Ctrl-C."""
    from client.flower_wire import Wire, loopback_key

    local = ",".join(filter(None, (os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), LOOPBACK)))
    os.environ |= {"NO_PROXY": local, "no_proxy": local}
    site = Site.open(folder)
    wire = Wire(superlink, loopback_key(folder / "node.key"), None, registers=True)
    _take_part(site, wire, profile, health_port, check_bundle_of(site, needs_list=False), lambda: "")


def run_in_federation(folder: Path, approve: str, profile: str, health_port: int) -> None:
    """Takes part in a federation until Ctrl-C; at the first start, the operator compares and signs the roster.

    Args:
        folder: this site's kit, enrolled.
        approve: digest of the roster that the operator has compared before; empty = asked for, on a terminal.
        profile: "" or "edge".
        health_port: on loopback, for grpc.health.v1; 0 = none.

    Raises:
        ConfigError: not enrolled, or nobody is there to be asked.
        Refused: the operator does not approve the roster.
        StorageError: a file of the kit is damaged, or open to other users.
    """
    from client.approval import approve as approve_roster
    from client.enrolment import SiteKit, warnings
    from client.flower_wire import Wire

    kit, site = SiteKit.open(folder), Site.open(folder)
    if kit.request() is None:
        raise ConfigError("not enrolled yet: tacit client enroll", source=folder)
    if kit.accepted() is None:
        if not (approve or sys.stdin.isatty()):
            raise ConfigError(
                "at the first start somebody has to compare the roster: --approve DIGEST", key="--approve"
            )
        with interrupted_once():
            approve_roster(folder, digest=approve)
    for line in warnings(kit):
        print(f"warning: {line}", flush=True)
    wire = Wire(kit.invitation.address, kit.node_key(), folder / "ca.pem", registers=False)
    check = check_bundle_of(site, needs_list=True)
    _take_part(site, wire, profile, health_port, check, lambda: new_epoch(kit))


def check_bundle_of(site: Site, *, needs_list: bool) -> Callable[[bytes], None]:
    """What refuses a bundle that this site's roster does not list.

    Args:
        site: whose roster it is, as it is when the bundle comes.
        needs_list: whether a roster without any bundle allows none. In a rehearsal it says nothing about them.
    """

    def check(digest: bytes) -> None:
        roster = site.roster()
        if roster.bundles or needs_list:
            roster.check_bundle(digest)

    return check


def new_epoch(kit: object) -> str:
    """Looks for a new epoch of the roster and takes it if it counts; a line about it, or "". Signs nothing."""
    from client.approval import follow, https_client
    from client.enrolment import SiteKit

    assert isinstance(kit, SiteKit)
    try:
        with https_client(kit) as client:
            return follow(kit, client, kit.identity())[1]
    except TacitError as error:
        return f"the roster cannot be brought up to date: {error}"


def _take_part(
    site: Site,
    wire: Wire,
    profile: str,
    health_port: int,
    check_bundle: Callable[[bytes], None],
    look: Callable[[], str],
) -> None:
    from client.agent import Agent
    from client.follower import Follower, screen
    from client.inbox import alone
    from client.pace import PACES
    from tacit import logs

    logs.configure()
    leave_no_core()
    with alone(site.folder), closing(wire), _health(health_port) as on_joined, screen() as shown:
        follower = Follower(shown)
        agent = Agent(site.folder, wire, check_bundle, PACES[profile], follower, on_joined, look)
        with suppress(KeyboardInterrupt), interrupted_once():
            agent.run()
        follower.say("left")


@contextmanager
def _health(port: int) -> Iterator[Callable[[bool], None]]:
    """Serves grpc.health.v1 on loopback; gives what says whether this site is connected."""
    if not port:
        yield lambda joined: None
        return
    from tacit.health import serve_health

    with closing(serve_health(port)) as health:
        health.set("", True)
        health.set(SERVICE, False)
        yield lambda joined: health.set(SERVICE, joined)
