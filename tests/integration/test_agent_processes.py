"""Agents as processes of their own at one real SuperLink, on loopback: same model, killed, restarted, refused."""

import json
import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from loopback import local_model, same_model, still_running, three_sites

from client.inbox import known_node
from client.site import Site
from server import submission
from server.flower_wire import Control
from server.superlink import CONNECTION, SuperLink
from simulations.sites import PreparedSites
from tacit.secagg.identity import Identity
from tacit.secagg.journal import FileJournal
from tacit.secagg.signed_roster import SignedRoster

pytestmark = pytest.mark.processes

ROUNDS = "training.rounds=2"
TACIT = str(Path(sysconfig.get_path("scripts")) / "tacit")


class Federation:
    """A SuperLink, and agents for the sites in a folder."""

    def __init__(self, folder: Path, link: SuperLink) -> None:
        self.folder, self.link = folder, link

    def use(self, name: str, *overrides: str) -> tuple[PreparedSites, Path]:
        """Sites of their own and a state folder of its own, which the next run will use."""
        prepared = three_sites(self.folder / name, *overrides)
        state = self.folder / name / "state"
        state.mkdir(mode=0o700)
        for link, target in (("state", state), ("federation", prepared.folder)):
            (self.folder / link).unlink(missing_ok=True)
            (self.folder / link).symlink_to(target)
        return prepared, state

    @contextmanager
    def client(self, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
        """A `tacit client` process; told to stop at the end."""
        with (self.folder / "clients.log").open("ab") as log:
            process = subprocess.Popen(
                [TACIT, "client", *map(str, arguments), "--superlink", f"127.0.0.1:{self.link.port}"],
                env={**os.environ, "STARTED_BY_TEST": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)

    def agent(self, site: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """An agent for one site."""
        return self.client("run", site, "--insecure-loopback")

    def online(self, *sites: Path) -> list[bool]:
        """Which of these sites' nodes are connected."""
        with Control(self.link) as control:
            connected = {node.id for node in control.nodes() if node.online}
        return [known_node(site) in connected for site in sites]

    @property
    def printed(self) -> str:
        """What clients have printed so far."""
        return (self.folder / "clients.log").read_text(encoding="utf-8")


@contextmanager
def superlink(folder: Path, port: int = 0) -> Iterator[SuperLink]:
    variables = {"TACIT_STATE": str(folder / "state"), "TACIT_FEDERATION": str(folder / "federation")}
    with SuperLink(folder / "flower", port=port, variables=variables) as link:
        yield link


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("agents")
    with superlink(folder) as link:
        yield Federation(folder, link)


def wait_for(condition: Callable[[], object], seconds: float = 90, pause: float = 0.05) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(pause)


def test_D3_agents_of_which_one_is_killed_in_a_round_give_the_model_of_the_local_engine(
    federation: Federation, tmp_path: Path
) -> None:
    """No one may be missing in this cohort, so the agent that is killed answers after its restart."""
    prepared, state = federation.use("killed", ROUNDS)
    sites = [prepared.folder / str(i) for i in range(3)]
    with federation.agent(sites[0]), federation.agent(sites[1]):
        with federation.agent(sites[2]) as victim:
            wait_for(lambda: all(federation.online(*sites)))
            assert "libtorch" not in Path(f"/proc/{victim.pid}/maps").read_text(), "torch before a round"
            run_id = submission.submit(federation.link, prepared.experiment.to_toml())
            # Once with the first round under way, when it holds a message that it has not answered.
            failed = state / "failure.json"
            for name, pause in (("round", 0.001), ("inbox", 0.0005)):
                wait_for(lambda n=name: failed.exists() or (sites[2] / "sessions" / n).exists(), pause=pause)
            victim.kill()
            victim.wait()
        with federation.agent(sites[2]):
            wait_for(lambda: (state / "result.json").exists() or failed.exists(), 200)
    assert (state / "result.json").exists(), submission.log_tail(federation.link, run_id)
    rounds = [json.loads(line) for line in (state / "rounds.jsonl").read_text().splitlines()]
    assert [row["survivors"] for row in rounds] == [["site-1", "site-2", "site-3"]] * 2
    assert [row["attempts"] for row in rounds] == [1, 1], "the message that it had taken is lost"
    assert same_model(state / "model.safetensors", local_model(tmp_path, ROUNDS))
    for site in sites:
        with FileJournal.open(site / "journal" / "journal.jsonl") as journal:
            (attempt,) = journal.runs.values()
        assert attempt.round == 2 and attempt.ctx2
        with Site.open(site).ledger() as ledger:
            assert len(ledger.entries) == 1, "a run without privacy is entered once"
        assert not (site / "sessions" / "inbox").exists()
    assert "round 2: done" in federation.printed


BUNDLE = """
[project]
name = "other"
version = "1.0.0"
description = "Brings code."
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "other"
[tool.flwr.app.components]
serverapp = "brought.server:app"
clientapp = "brought.client:app"
[tool.flwr.app.config]
experiment = ""
"""
BROUGHT_CLIENT = """
from pathlib import Path
from flwr.clientapp import ClientApp
Path({path!r}).write_text("was here")
app = ClientApp()
"""
BROUGHT_SERVER = """
import time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    (node,) = grid.get_node_ids()
    ids = set(grid.push_messages([Message(RecordDict(), node, "query.tacit")]))
    while not (answers := list(grid.pull_messages(ids))):
        time.sleep(0.05)
    Path({path!r}).write_text(answers[0].error.reason if answers[0].has_error() else "answered")
"""


def test_B22_code_that_the_server_sends_never_runs_and_the_agent_goes_on(
    federation: Federation, tmp_path: Path
) -> None:
    prepared, _ = federation.use("sent")
    site, listed = prepared.folder / "0", bytes(31) + b"\1"
    roster = SignedRoster.decode((site / "roster.json").read_bytes()).roster
    signed = SignedRoster(replace(roster, bundles=frozenset({listed})))
    for i in range(3):
        signed = signed.sign(Identity.load(prepared.folder / str(i) / "identity.key"))
    (site / "roster.json").unlink()  # the folders share it
    (site / "roster.json").write_bytes(signed.encode())
    source, trace, seen = tmp_path / "app", tmp_path / "trace", tmp_path / "seen"
    (source / "brought").mkdir(parents=True)
    (source / "pyproject.toml").write_text(BUNDLE)
    (source / "brought" / "__init__.py").touch()
    (source / "brought" / "client.py").write_text(BROUGHT_CLIENT.format(path=str(trace)))
    (source / "brought" / "server.py").write_text(BROUGHT_SERVER.format(path=str(seen)))
    with federation.agent(site) as agent:
        wait_for(lambda: all(federation.online(site)))
        submission._flwr(federation.link, "run", str(source), CONNECTION)
        wait_for(seen.exists)
        assert seen.read_text() == "refused:bundle"
        assert agent.poll() is None
        assert not list((site / "flower").rglob("*brought*")), "nothing is installed"
    assert not trace.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_K10_an_agent_leaves_no_core_dump_and_when_it_is_told_to_stop_nothing_else(
    number: signal.Signals, federation: Federation
) -> None:
    prepared, _ = federation.use(f"left-{number}")
    site = prepared.folder / "0"
    with federation.agent(site) as agent:
        wait_for(lambda: all(federation.online(site)))
        limits = Path(f"/proc/{agent.pid}/limits").read_text().splitlines()
        assert "Max core file size 0 0 bytes" in [" ".join(line.split()) for line in limits]
        agent.send_signal(number)
        assert agent.wait(timeout=30) == 0
        assert federation.online(site) == [False]
    left = [line for line in still_running(federation.folder) if "client" in line]
    assert left == []


def test_an_agent_that_was_killed_is_back_at_once_as_the_same_node(federation: Federation) -> None:
    """Flower takes it for connected for up to a minute, and refuses to connect it once more."""
    prepared, _ = federation.use("back")
    site = prepared.folder / "0"
    with federation.agent(site) as agent:
        wait_for(lambda: all(federation.online(site)))
        before = known_node(site)
        agent.kill()
        agent.wait()
    killed = time.monotonic()
    connected = federation.printed.count("  connected")
    with federation.agent(site):
        wait_for(lambda: federation.printed.count("  connected") > connected)
        assert time.monotonic() - killed < 30
        assert known_node(site) == before
        assert federation.online(site) == [True]


def test_D4_agents_outlive_a_superlink_that_forgets_everything(tmp_path: Path) -> None:
    with superlink(tmp_path) as link:
        federation, port = Federation(tmp_path, link), link.port
        prepared, _ = federation.use("restarted")
        site = prepared.folder / "0"
        with federation.agent(site) as agent:
            wait_for(lambda: all(federation.online(site)))
            link.__exit__(None, None, None)
            with superlink(tmp_path, port) as again:
                federation.link = again
                wait_for(lambda: all(federation.online(site)))
                assert agent.poll() is None
            assert "not connected" in federation.printed
