"""docs/deployment.md, as it stands there: its files are written and its commands run, one after the other.

Each command is a process of its own on a terminal of its own, where somebody types yes when asked to. Three things
differ from the page: the ports, which are free ones, the number of rounds, and the rows of the make-believe tables.
"""

import contextlib
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from loopback import still_running

from client.enrolment import SiteKit
from server.runs import Queue
from server.state import read_rounds
from tacit.processes import free_port

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
HOUR, REFERENCE = PAGE.split("## The coordinator's side\n")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
SITES = ("hospital-a", "hospital-b", "hospital-c")
JOINS = "hospital-d"
PROMPT = "Are they the same at all sites? Type yes to sign:"
LASTS = ("tacit server", "tacit client run", "tacit client approve")
SHORTER = {"tacit submit": ("--set", "training.rounds=2")}
PATIENCE = 120.0

pytestmark = pytest.mark.processes


class Terminal:
    """A command on a terminal of its own, with somebody who types yes."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        mine, its = pty.openpty()
        self.text = ""
        self._process = subprocess.Popen(
            words, cwd=folder, env=environment, stdin=its, stdout=its, stderr=its, start_new_session=True
        )
        os.close(its)
        self._reader = threading.Thread(target=self._read, args=(mine,), daemon=True)
        self._reader.start()

    def _read(self, mine: int) -> None:
        asked = 0
        with contextlib.suppress(OSError):  # a terminal ends so when the last process on it has
            while data := os.read(mine, 4096):
                self.text += data.decode(errors="replace").replace("\r", "")
                if self.text.count(PROMPT) > asked:
                    os.write(mine, b"yes\n")
                    asked += 1
        os.close(mine)

    def says(self, text: str) -> bool:
        """Whether it says this before long."""
        until(lambda: text in self.text or self._process.poll() is not None)
        return text in self.text

    def end(self, number: signal.Signals | None = None) -> int:
        """The exit code, after a signal to the command."""
        if number is not None and self._process.poll() is None:
            self._process.send_signal(number)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._reader.join(10)
        return self._process.wait()


class Reader:
    """Somebody who does what the page says, in a folder.

    Attributes:
        ended: what each command that has ended has said, with its exit code, in order.
        lasting: the terminals of those that go on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.ended: list[tuple[str, str, int]] = []
        self.lasting: dict[str, Terminal] = {}
        self._environment = {**os.environ, "STARTED_BY_TEST": str(folder), "COLUMNS": "200", "TERM": "xterm"}
        path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
        self._environment |= {"PATH": path}

    def write(self, kind: str, content: str) -> None:
        """A file of the page."""
        if kind == "python":
            self._save("make_data.py", re.sub(r'"(hospital-.)", \d+', r'"\1", 40', content))
            self.do(f"{sys.executable} make_data.py")
        elif "address" in content:
            self._save("federation.toml", content.replace("9443", str(self.port)))
        elif "epsilon_ceiling" in content:
            self._save(f"kits/{SITES[0]}/policy.toml", content)
        else:
            self._save("experiment.toml", content)

    def join_another(self) -> None:
        """The sentence of step 7 before its commands."""
        text = (self.folder / "federation.toml").read_text()
        self._save("federation.toml", text.replace('"hospital-c"]', f'"hospital-c", "{JOINS}"]'))

    def do(self, command: str) -> None:
        """A command of the page; one that lasts goes on."""
        more = next((words for start, words in SHORTER.items() if command.startswith(start)), ())
        terminal = self.start([*shlex.split(command, comments=True), *more])
        if command.startswith(LASTS):
            self.lasting[command] = terminal
        else:
            self.finish(command, terminal)

    def start(self, words: Sequence[str]) -> Terminal:
        return Terminal(words, self.folder, self._environment)

    def finish(self, command: str, terminal: Terminal) -> None:
        code = terminal.end()
        self.ended.append((command, terminal.text, code))

    def said(self, command: str) -> str:
        return next(text for done, text, _ in self.ended if done.startswith(command))

    def _save(self, name: str, content: str) -> None:
        (self.folder / name).write_text(content, encoding="utf-8")


def until(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return held


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """The first hour, in which a fourth hospital joins. Server and sites still run."""
    reader = Reader(tmp_path_factory.mktemp("hour"))
    try:
        for kind, content in BLOCK.findall(HOUR):
            if kind:
                reader.write(kind, content)
                continue
            if "provision federation.toml" in content and reader.lasting:
                reader.join_another()
            for command in content.splitlines():
                if command.startswith("tacit "):
                    reader.do(command)
            for command, terminal in reader.lasting.items():
                if "client run" in command:
                    assert terminal.says("connected"), terminal.text
            for command in [command for command in reader.lasting if "approve" in command]:
                reader.finish(command, reader.lasting.pop(command))
        yield reader
    finally:
        for command, terminal in reader.lasting.items():
            if "server" not in command:
                terminal.end(signal.SIGINT)
        for terminal in reader.lasting.values():
            terminal.end(signal.SIGINT)


def test_every_command_of_the_first_hour_ends_well(hour: Reader) -> None:
    assert {command: text for command, text, code in hour.ended if code} == {}
    assert set(hour.lasting) == {
        "tacit server --kit kits/coordinator",
        *(f"tacit client run kits/{label}" for label in (*SITES, JOINS)),
    }


def test_the_page_asks_what_the_command_asks(hour: Reader) -> None:
    shown = next(content for kind, content in BLOCK.findall(HOUR) if not kind and PROMPT in content)
    assert shown in hour.lasting[f"tacit client run kits/{SITES[0]}"].text.replace(f"{PROMPT} yes", PROMPT)


def test_the_run_is_the_one_of_the_page(hour: Reader) -> None:
    (run,) = Queue(hour.folder / "kits" / "coordinator" / "state" / "runs").runs()
    assert (run.status.state, run.status.name) == ("finished", "readmission")
    rows = read_rounds(run.folder / "rounds.jsonl")
    assert [row["survivors"] for row in rows] == [list(SITES)] * 2
    assert (run.folder / "model.safetensors").exists()
    for name in ("report.html", "privacy-statement.md"):
        assert (run.folder / name).exists() and f"kits/coordinator/state/runs/{run.id}/{name}" in hour.said(
            "tacit submit"
        )
    assert run.id in hour.said("tacit client ledger")


def test_a_file_that_a_site_sends_has_no_secret_and_the_kits_are_closed(hour: Reader) -> None:
    for label in (*SITES, JOINS):
        kit = hour.folder / "kits" / label
        own = [
            line for name in ("identity.key", "node.key") for line in (kit / name).read_text().splitlines()
        ]
        sent = (kit / "request.json").read_text()
        assert not any(line in sent for line in own if not line.startswith("-----"))
        assert kit.stat().st_mode & 0o077 == 0


def test_all_four_have_accepted_the_second_epoch(hour: Reader) -> None:
    def epochs() -> set[int]:
        kits = [SiteKit.open(hour.folder / "kits" / label) for label in (*SITES, JOINS)]
        return {roster.epoch if (roster := kit.accepted()) else 0 for kit in kits}

    assert until(lambda: epochs() == {2})


def test_flowers_own_node_takes_part_with_the_same_kit(hour: Reader) -> None:
    (block,) = (content for kind, content in BLOCK.findall(REFERENCE) if kind == "sh")
    assert hour.lasting.pop(f"tacit client run kits/{SITES[0]}").end(signal.SIGINT) == 0
    server = hour.lasting["tacit server --kit kits/coordinator"]
    assert server.says(f"{SITES[0]} is away")
    node = hour.start(
        [
            "bash",
            "-ec",
            block.replace("9443", str(hour.port)).replace("flower-supernode", "exec flower-supernode"),
        ]
    )
    try:
        assert until(lambda: server.text.count(f"{SITES[0]} is here") == 2), node.text
    finally:
        node.end(signal.SIGTERM)


def test_nothing_is_left_when_all_have_left(hour: Reader) -> None:
    """The last test: it ends what the page has started."""
    for command in sorted(hour.lasting, key=lambda command: "server" in command):
        assert hour.lasting[command].end(signal.SIGINT) == 0, command
    assert until(lambda: not still_running(hour.folder)), still_running(hour.folder)


@pytest.mark.slow  # test_processes.py and test_agent_processes.py have the same commands with other files
def test_the_rehearsal_on_loopback_runs(tmp_path: Path) -> None:
    reader, port = Reader(tmp_path), str(free_port())
    *_, block = (content for kind, content in BLOCK.findall(REFERENCE) if not kind)
    init, partition, server, *clients = block.splitlines()
    reader.do(init)
    reader.do(f"{partition} --set training.rounds=1 --set data.test_fraction=0.5")
    reader.do(f"{server} --port {port}")
    links = [reader.start([*shlex.split(client), "--superlink", f"127.0.0.1:{port}"]) for client in clients]
    try:
        reader.finish(server, reader.lasting.popitem()[1])
        assert [code for *_, code in reader.ended] == [0, 0, 0], reader.ended[-1][1]
        assert (tmp_path / "rehearsal" / "server" / "model.safetensors").exists()
    finally:
        codes = [link.end(signal.SIGINT) for link in links]
    assert codes == [0, 0, 0]
