"""Tacit's client against Flower's stock node, same app, same sites, same SuperLink program, in one session.

The stock node is a SuperNode, its SuperExec, and a ClientApp process for each message, with Flower's own polling. Both
kinds train the same model, with Opacus, over the same four sites.
"""

from __future__ import annotations

import contextlib
import json
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import tomli_w

from server import submission
from server.superlink import SuperLink
from simulations.run import prepare
from tacit import config
from tacit.processes import Group, flower_environment, free_port
from tests.bench.edge_task import COLUMNS
from tests.bench.memory import Memory, largest, memory_of
from tests.bench.tap import Tap

ROOT = Path(__file__).parents[2]
STOCK_APP = Path(__file__).parent / "stock_app"
TACIT = Path(sysconfig.get_path("scripts")) / "tacit"
SITES, ROWS = 4, 50
STARTS = 5
SETTLE_SECONDS = 4.0
RUN_SECONDS = 240.0
# Of these the SuperLink takes that a node is there; a client that was here before begins with a heartbeat.
JOINED = ("/v1/fleet/activate-node", "/v1/fleet/send-node-heartbeat")
STOCK_ROUNDS = 2  # of half a minute each
ROUNDS = {"trivial": 20, "private": 6, "secure": 6}
PLAIN = ("secure_aggregation.enabled=false",)
TRIVIAL = (*PLAIN, "task.kind=tabular", "task.model.name=logistic")
PRIVATE = ("privacy.record={epsilon=3.0, delta=1e-5}",)


@dataclass
class Figures:
    """What was seen of one kind of node; seconds, and bytes of one node in a whole round."""

    start: float = 0.0
    idle: Memory = field(default_factory=Memory)
    training: Memory = field(default_factory=Memory)
    rounds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, float] = field(default_factory=dict)


def run() -> list[dict]:
    """Memory, start and rounds: Tacit's client over the stock node's."""
    with tempfile.TemporaryDirectory() as folder:
        starts = _starts(Path(folder) / "starts")
        stock = _stock(Path(folder) / "stock")
        tacit = _tacit(Path(folder) / "tacit")
    stock.start, tacit.start = (median(seconds) for seconds in zip(*starts, strict=True))
    for name, figures in (("stock", stock), ("tacit", tacit)):
        print(
            f"  {name}: start {figures.start:.2f} s,"
            f" idle {_text(figures.idle)}, training {_text(figures.training)}"
        )
        for what, seconds in figures.rounds.items():
            sent = f", {figures.bytes[what] / 1e3:.0f} kB a node" if what in figures.bytes else ""
            print(f"    {what}: {seconds:.2f} s a round{sent}")
    trivial = stock.rounds["trivial"]
    return [
        _row("idle: resident memory over stock", tacit.idle.resident / stock.idle.resident, 0.5),
        _row("idle: proportional memory over stock", tacit.idle.proportional / stock.idle.proportional, 0.5),
        _row("training: resident memory over stock", tacit.training.resident / stock.training.resident, 0.7),
        _row(
            "training: proportional memory over stock",
            tacit.training.proportional / stock.training.proportional,
            0.7,
        ),
        _row(
            "start until registered as alive, over stock",
            median(tacit_seconds / stock_seconds for stock_seconds, tacit_seconds in starts),
            1.0,
        ),
        _row(
            "trivial round of 4 clients: speed over stock", trivial / tacit.rounds["trivial"], 8.0, "higher"
        ),
        _row("secure round, d = 1e5, over one trivial stock round", tacit.rounds["secure"] / trivial, 1.0),
        _row("plain round: bytes over stock", tacit.bytes["private"] / stock.bytes["private"], None),
    ]


def _starts(folder: Path) -> list[tuple[float, float]]:
    """Pairs of a stock node's and of our client's seconds, one right after the other; the first pair warms up."""
    site, pairs = _sites(folder)[0], []
    with _superlink(folder) as (_, tap):
        for _ in range(1 + STARTS):
            stock = _start_seconds(_stock_command, site, tap)
            pairs.append((stock, _start_seconds(_tacit_command, site, tap)))
    return pairs[1:]


def _stock(folder: Path) -> Figures:
    figures, sites = Figures(), _sites(folder)
    with _superlink(folder) as (link, tap), contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(_node(_stock_command, site, link.port)) for site in sites[1:]]
        nodes.append(stack.enter_context(_node(_stock_command, sites[0], tap.port)))
        figures.idle = _idle(link, nodes)
        figures.rounds["trivial"] = median(_trivial(link, folder)[1:])
        _train(figures, "private", (*PLAIN, *PRIVATE), STOCK_ROUNDS, link, tap, nodes[-1], folder)
    return figures


def _tacit(folder: Path) -> Figures:
    figures, sites = Figures(), _sites(folder)
    with _superlink(folder) as (link, tap), contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(_node(_tacit_command, site, link.port)) for site in sites[1:]]
        nodes.append(stack.enter_context(_node(_tacit_command, sites[0], tap.port)))
        figures.idle = _idle(link, nodes)
        for name, overrides in (("trivial", TRIVIAL), ("private", (*PLAIN, *PRIVATE)), ("secure", PRIVATE)):
            _train(figures, name, overrides, ROUNDS[name], link, tap, nodes[-1], folder)
    return figures


def _sites(folder: Path) -> list[Path]:
    """Four sites with data, keys, a roster, and a policy that allows what is measured."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    names = [f"x{i}" for i in range(COLUMNS)]
    x = rng.normal(size=(SITES * ROWS, COLUMNS))
    lines = [",".join([*names, "y"])]
    lines += [
        ",".join([*(f"{v:.4f}" for v in row), str(int(label))])
        for row, label in zip(x, x[:, 0] > 0, strict=True)
    ]
    (folder / "data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    prepared = prepare(config.loads(_experiment(folder)), folder)
    (prepared.folder / "experiment.toml").write_text(prepared.experiment.to_toml(), encoding="utf-8")
    policy = {
        "require_secure_aggregation": False,
        "allow_single_updates": True,
        "allowed_tasks": ["tabular", prepared.experiment.task.kind],
        "max_rounds_per_hour": 10**9,
        "max_model_parameters": 10**9,
        "max_update_norm": 1000.0,
    }
    sites = [prepared.folder / str(i) for i in range(SITES)]
    for site in sites:
        (site / "policy.toml").write_text(tomli_w.dumps(policy), encoding="utf-8")
    return sites


def _experiment(folder: Path) -> str:
    columns = "\n".join(f'x{i} = {{kind = "numeric", range = [-4.0, 4.0]}}' for i in range(COLUMNS))
    return f"""
name = "edge"
[task]
kind = "tests.bench.edge_task:Wide"
[data]
source = "csv"
path = "{folder / "data.csv"}"
test_fraction = 0.0
[data.schema]
label = "y"
[data.schema.columns]
{columns}
[partition]
num_clients = {SITES}
[training]
rounds = 1
sampling_rate = 0.2
local_steps = 1
[secure_aggregation]
max_dropouts = 0
[simulation]
baselines = false
"""


@contextlib.contextmanager
def _superlink(folder: Path) -> Iterator[tuple[SuperLink, Tap]]:
    variables = {
        "TACIT_STATE": str(folder / "state"),
        "TACIT_FEDERATION": str(folder / "sites"),
        "BENCH_SECONDS": str(folder / "seconds.json"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    with SuperLink(folder / "flower", variables=variables) as link:
        tap = Tap(link.port)
        try:
            yield link, tap
        finally:
            tap.close()


def _stock_command(site: Path, port: int) -> list[str]:
    command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"]
    command += ["--isolation", "subprocess", "--port", str(free_port())]
    return [*command, "--node-config", f"site='{site}'"]


def _tacit_command(site: Path, port: int) -> list[str]:
    return [str(TACIT), "client", "run", str(site), "--insecure-loopback", "--superlink", f"127.0.0.1:{port}"]


@contextlib.contextmanager
def _node(command: object, site: Path, port: int) -> Iterator[Group]:
    """A node, and what it prints, in its site's folder."""
    home = site / "flower"
    home.mkdir(exist_ok=True)
    # One torch thread for both kinds: four nodes share this machine, and a site would have one for itself.
    environment = {**flower_environment(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    del environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"]  # stock is as Flower starts it
    with (site / "node.log").open("ab") as log:
        words = command(site, port)  # type: ignore[operator]
        with Group(words, environment=environment, folder=home, output=log, patience=10.0) as group:
            yield group


def _start_seconds(command: object, site: Path, tap: Tap) -> float:
    """From the start of the process until it tells the SuperLink that it is there."""
    tap.forget()
    started = time.monotonic()
    with _node(command, site, tap.port):
        try:
            seconds = tap.wait_for(*JOINED) - started
        except TimeoutError as error:
            error.add_note((site / "node.log").read_text(encoding="utf-8")[-2000:])
            raise
        time.sleep(
            1.0
        )  # for the answer: a node that ends before it is not signed off, and locked out for a minute
        return seconds


def _idle(link: SuperLink, nodes: list[Group]) -> Memory:
    """Of the last of these nodes, once all are registered and have nothing to do."""
    while submission.num_online_nodes(link) < SITES:
        link.check()
        assert all(node.leader.poll() is None for node in nodes), "a node has ended: see node.log of its site"
        time.sleep(0.5)
    time.sleep(SETTLE_SECONDS)
    return memory_of(nodes[-1].leader.pid)


def _trivial(link: SuperLink, folder: Path) -> list[float]:
    """Seconds of each round of an app that does nothing."""
    out = folder / "seconds.json"
    submission._flwr(link, "run", str(STOCK_APP), "tacit")
    while not out.exists():
        link.check()
        time.sleep(0.2)
    return list(json.loads(out.read_text()))


def _train(
    figures: Figures,
    name: str,
    overrides: tuple[str, ...],
    rounds: int,
    link: SuperLink,
    tap: Tap,
    node: Group,
    folder: Path,
) -> None:
    """Trains to the end; notes seconds of a round (after the first), bytes of one node, the node's largest memory."""
    state, current = folder / f"state-{name}", folder / "state"
    state.mkdir()
    current.unlink(missing_ok=True)
    current.symlink_to(state)
    text = (folder / "sites" / "experiment.toml").read_text()
    experiment = config.loads(text, overrides=(*overrides, f"training.rounds={rounds}"))
    before = tap.bytes
    # To look costs time: not while the shortest rounds are timed, which need the least memory.
    watched = contextlib.nullcontext(Memory()) if name == "trivial" else largest(node.leader.pid)
    with watched as peak:
        submission.run(link, experiment.to_toml(), current, timeout=RUN_SECONDS)
    figures.bytes[name] = (tap.bytes - before) / rounds
    lines = (state / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    figures.rounds[name] = median(json.loads(line)["seconds"] for line in lines[1:])
    figures.training.resident = max(figures.training.resident, peak.resident)
    figures.training.proportional = max(figures.training.proportional, peak.proportional)


def _text(memory: Memory) -> str:
    return f"{memory.resident:.0f} MB resident ({memory.proportional:.0f} proportional)"


def _row(name: str, ratio: float, bar: float | None, better: str = "lower") -> dict:
    ok = bar is None or (ratio <= bar if better == "lower" else ratio >= bar)
    return {"name": name, "ratio": ratio, "bar": bar, "better": better, "ok": ok}
