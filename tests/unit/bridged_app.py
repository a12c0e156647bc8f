"""Flower apps for the tests of the bridge: one of a few lines, and that of the page before and after its two lines."""

import importlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from server.bridge import secure
from simulations.bridge import make_federation
from simulations.local_grid import LocalGrid
from simulations.run import environment
from tacit.bridge import Terms

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "bridge-flower-app.md").read_text(encoding="utf-8")
APP = ROOT / "tests" / "integration" / "flower_app"
ROWS = (50, 100, 150, 200)
TERMS = Terms(app="toy:app").model_dump()
SECURE = {"update_clip": 2.0, "precision_bits": 20, "max_dropouts": 1, "deadline_seconds": 2.0}

Answer = Callable[[int, dict[str, np.ndarray], Mapping[str, Any]], RecordDict]


def terms(**changes: Any) -> Terms:
    """Four sites of which one may vanish; fine steps."""
    changes.setdefault("secure_aggregation", {})
    changes["secure_aggregation"] = {**SECURE, **changes["secure_aggregation"]}
    return Terms.model_validate({**TERMS, **changes})


def federation(folder: Path, agreed: Terms, rows: tuple[int, ...] = ROWS) -> Path:
    """Folders of the server and of one site for each number of rows."""
    make_federation(folder, agreed, rows)
    return folder


def answer(site: int, model: dict[str, np.ndarray], config: Mapping[str, Any]) -> RecordDict:
    """Each site has a point of its own and goes half of the way there, less with FedProx's pull."""
    point = np.array([site, 1.0, -site, 0.5], dtype=np.float32) / 4
    step = 0.5 / (1 + float(config.get("proximal-mu", 0.0)))
    trained = {
        "w": model["w"] + np.float32(step) * (point - model["w"]),
        "count": np.asarray(model["count"] + 5),
    }
    return records(trained, {"num-examples": ROWS[site], "train_loss": 0.25 * site, "other": 7.0})


def records(arrays: Mapping[str, np.ndarray], metrics: Mapping[str, Any]) -> RecordDict:
    return RecordDict(
        {
            "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "metrics": MetricRecord(dict(metrics)),
        }
    )


def initial() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(4, np.float32)), "count": Array(np.array(0))})


def toy(app: ClientApp, answer: Answer = answer) -> ClientApp:
    """Registers training and evaluation of the small app."""

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = {name: array.numpy() for name, array in message.content["arrays"].items()}  # type: ignore[union-attr]
        site = int(str(context.node_config["partition-id"]))
        return Message(answer(site, model, message.content.config_records["config"]), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        site = int(str(context.node_config["partition-id"]))
        w = message.content.array_records["arrays"]["w"].numpy()
        metrics = {"num-examples": ROWS[site], "eval_loss": float(np.square(w).sum()) + site}
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    return app


@contextmanager
def found(folder: Path) -> Iterator[None]:
    """The variables that Flower's programs have to be started with."""
    with environment(TACIT_SITES=str(folder), TACIT_FEDERATION=str(folder)):
        yield


def start(
    strategy: Strategy,
    app: ClientApp,
    folder: Path | None = None,
    *,
    num_rounds: int = 3,
    around: Callable[[Grid], Grid] = lambda grid: grid,
    **options: Any,
) -> Result:
    """Flower's own loop over all sites, on plain messages or over the secure sum of a federation's folder."""
    grid = around(LocalGrid(app, {}, len(ROWS)))
    if folder is None:
        return strategy.start(grid=grid, initial_arrays=initial(), num_rounds=num_rounds)
    with found(folder):
        bridged = secure(grid, strategy, **options)
        return strategy.start(grid=bridged, initial_arrays=initial(), num_rounds=num_rounds)


def numpy(record: ArrayRecord | None) -> dict[str, np.ndarray]:
    assert record is not None
    return {name: array.numpy() for name, array in record.items()}


# -- the page's app ----------------------------------------------------------------------------------------------


def with_the_lines(folder: Path) -> int:
    """Changes the app in a folder as the page says; how many lines there are to add."""
    added = 0
    for name, block in re.findall(r"`quickstart/(\w+\.py)`:\n\n```diff\n(.*?)^```$", PAGE, re.M | re.S):
        path = folder / "quickstart" / name
        for hunk in block.strip("\n").split("\n\n"):
            lines = hunk.split("\n")
            old = "".join(line[1:] + "\n" for line in lines if line[0] in " -")
            new = "".join(line[1:] + "\n" for line in lines if line[0] in " +")
            source = path.read_text()
            assert source.count(old) == 1, hunk
            path.write_text(source.replace(old, new))
            added += sum(line[0] == "+" for line in lines)
    return added


def page_terms(text: str = PAGE) -> Terms:
    """The `bridge.toml` of the page."""
    [block] = re.findall(r"^```toml\n(.*?)^```$", text, re.M | re.S)
    return Terms.model_validate(tomllib.loads(block))


@contextmanager
def loaded(folder: Path) -> Iterator[tuple[ModuleType, ModuleType]]:
    """Server and client module of the app in a folder, as Flower would import them."""
    sys.path.insert(0, str(folder))
    try:
        yield tuple(importlib.import_module(f"quickstart.{side}_app") for side in ("server", "client"))  # type: ignore[misc]
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] == "quickstart"]:
            del sys.modules[name]


def run_app(folder: Path, model: Path, **options: Any) -> None:
    """Runs the app in a folder over three nodes of the local grid."""
    declared = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    config = {**declared, "model": str(model), **options}
    with loaded(folder) as (server, client):
        grid = LocalGrid(client.app, config, 3)
        server.app(grid, Context(1, 1, {}, RecordDict(), config))
