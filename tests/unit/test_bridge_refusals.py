"""What the bridge refuses: answers of an app, servers that tell sites different things, strategies' odd messages."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from client.bridge import SecureClientApp
from server.bridge import secure
from simulations.local_grid import LocalGrid
from strategies.bridge import BridgeGrid
from strategies.grids import WrappedGrid
from tacit.errors import ConfigError, RunFailed
from tests.unit.bridged_app import answer, federation, found, initial, numpy, records, start, terms, toy

QUIET = {"fraction_evaluate": 0.0}


# -- what a site refuses -----------------------------------------------------------------------------------------


def one_wrong(what: Callable[[dict[str, np.ndarray]], RecordDict]) -> ClientApp:
    """The app with something wrong at site 2."""
    return toy(SecureClientApp(), lambda site, m, config: what(m) if site == 2 else answer(site, m, config))


def raising(model: dict[str, np.ndarray]) -> RecordDict:
    raise ValueError("row 17: 42.0")


GOOD = {"train_loss": 0.5}
WRONG: dict[str, tuple[Callable[[dict[str, np.ndarray]], RecordDict], str]] = {
    "raises": (raising, "failed"),
    "no arrays": (lambda m: RecordDict({"metrics": MetricRecord(dict(GOOD))}), "app-answer"),
    "another shape": (lambda m: records({**m, "w": m["w"][:2]}, GOOD), "app-answer"),
    "another name": (lambda m: records({"w": m["w"]}, GOOD), "app-answer"),
    "two models": (lambda m: RecordDict({**records(m, GOOD), "more": initial()}), "app-answer"),
    "not finite": (lambda m: records({**m, "w": np.full(4, np.inf, np.float32)}, GOOD), "unavailable"),
    "no metric": (lambda m: records(m, {"loss": 1.0}), "metrics"),
    "a list": (lambda m: records(m, {"train_loss": [1.0]}), "metrics"),
    "a metric that is not finite": (lambda m: records(m, {"train_loss": math.nan}), "unavailable"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_site_whose_app_answers_wrongly_is_a_drop_out(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    what, reason = WRONG[case]
    errors: list[str] = []

    class Noting(WrappedGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            answers = list(super().pull_messages(message_ids))
            errors.extend(str(answer.error.reason) for answer in answers if answer.has_error())
            return answers

    folder = federation(tmp_path, terms(train_metrics={"train_loss": 1.0}))
    result = start(FedAvg(**QUIET), one_wrong(what), folder, num_rounds=1, around=Noting)
    assert errors == [f"refused:{reason}"]
    assert numpy(result.arrays)["w"][0] == pytest.approx(0.5 * (0 + 1 + 3) / 4 / 3, abs=1e-4)
    assert "42.0" not in caplog.text


def test_too_many_wrong_answers_end_the_run(tmp_path: Path) -> None:
    app = toy(SecureClientApp(), lambda site, m, c: raising(m) if site < 2 else answer(site, m, c))
    with pytest.raises(RunFailed, match=r"no sum over at least 3 of 4 sites .* failed"):
        start(FedAvg(**QUIET), app, federation(tmp_path, terms()))


def test_an_update_that_was_sent_is_not_sent_again(tmp_path: Path) -> None:
    """Two sites vanish after the vectors are there: too few confirm, and nobody helps with another attempt."""
    kinds = Counter[str]()

    class Vanishing(SecureClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            kinds[kind := message.metadata.message_type] += 1
            if kind == "train.tacit3" and int(str(context.node_config["partition-id"])) < 2:
                raise RuntimeError("gone")
            return super().__call__(message, context)

    with pytest.raises(RunFailed, match="attempt"):
        start(FedAvg(**QUIET), toy(Vanishing()), federation(tmp_path, terms()))
    assert kinds["train.tacit2"] == 4


def changed(folder: Path, file: str, text: str, more: str) -> None:
    path = folder / "2" / file
    assert text in path.read_text()
    path.write_text(path.read_text().replace(text, more))


CEILING = "epsilon_ceiling = 8.0\ndelta = 1e-5\n"
AGREEMENT = {
    "another clip norm": ("bridge.toml", "update_clip = 2.0", "update_clip = 3.0", "context"),
    "other weights": ("bridge.toml", '"equal"', '"declared"', "context"),
    "another bound of a metric": ("bridge.toml", "train_loss = 1.0", "train_loss = 2.0", "context"),
    "a file that cannot be read": ("bridge.toml", "rounds = 1000", "rounds = ", "unavailable"),
    "an app that the site has not allowed": ("policy.toml", "toy:app", "other:app", "task"),
    "a site that asks for privacy": ("policy.toml", "allowed", CEILING + "allowed", "not-private"),
    "a site that wants shorter updates": ("policy.toml", "allowed", "max_update_norm = 1.0\nallowed", "update-norm"),
    "a site that wants more company": ("policy.toml", "allowed", "min_honest = 4\nallowed", "cohort"),
    "a site that wants smaller models": ("policy.toml", "allowed", "max_model_parameters = 3\nallowed", "model-size"),
}  # fmt: skip


class Refusals(WrappedGrid):
    """Notes which node refused and why."""

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self.seen: list[tuple[int, str]] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        answers = list(super().pull_messages(message_ids))
        self.seen += [
            (a.metadata.src_node_id, str(a.error.reason).removeprefix("refused:"))
            for a in answers
            if a.has_error()
        ]
        return answers


@pytest.mark.parametrize("case", AGREEMENT)
def test_a_site_that_has_agreed_on_something_else_takes_no_part(case: str, tmp_path: Path) -> None:
    file, text, more, reason = AGREEMENT[case]
    folder = federation(tmp_path, terms(train_metrics={"train_loss": 1.0}))
    changed(folder, file, text, more)
    grids: list[Refusals] = []

    def around(grid: Grid) -> Grid:
        grids.append(Refusals(grid))
        return grids[0]

    start(FedAvg(**QUIET), toy(SecureClientApp()), folder, num_rounds=1, around=around)
    assert grids[0].seen == [(4, reason)]


def model_of(value: float) -> ArrayRecord:
    return ArrayRecord({**initial(), "w": Array(np.full(4, value, np.float32))})


LIES: dict[str, Callable[[RecordDict], None]] = {
    "another learning rate": lambda content: content.config_records["config"].update({"lr": 0.0}),
    "another thing asked for": lambda content: content.config_records["bridge"].update({"asks": "evaluate"}),
    "another model": lambda content: content.update({"arrays": model_of(1.0)}),
    "nothing asked for": lambda content: content.pop("bridge") and None,
    "a list in the configuration": lambda content: content.config_records["config"].update({"lr": [0.0]}),
    "one more record": lambda content: content.update({"more": ConfigRecord()}),
    "a model that is not finite": lambda content: content.update({"arrays": model_of(math.nan)}),
}  # fmt: skip
CODES = {"nothing asked for": "fields", "a list in the configuration": "fields", "one more record": "fields",
         "a model that is not finite": "model-values", "another thing asked for": "context"}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_tells_one_site_something_else_is_refused_there(lie: str, tmp_path: Path) -> None:
    """As it would to learn the update of the one site that it told to train."""
    trained: list[int] = []
    grids: list[Refusals] = []

    class Lying(Refusals):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            for message in messages:
                if message.metadata.dst_node_id == 4 and message.metadata.message_type == "train.tacit0":
                    content = {n: r.copy() for n, r in message.content.items()}  # type: ignore[union-attr]
                    message.content = RecordDict(content)
                    LIES[lie](message.content)
            return super().push_messages(messages)

    def noting(site: int, model: dict[str, np.ndarray], config: Any) -> RecordDict:
        trained.append(site)
        return answer(site, model, config)

    def around(grid: Grid) -> Grid:
        grids.append(Lying(grid))
        return grids[0]

    folder = federation(tmp_path, terms(evaluate_metrics={"eval_loss": 8.0}))
    with found(folder):
        strategy = FedAvg(**QUIET)
        grid = secure(around(LocalGrid(toy(SecureClientApp(), noting), {}, 4)), strategy)
        strategy.start(
            grid=grid, initial_arrays=initial(), num_rounds=1, train_config=ConfigRecord({"lr": 0.1})
        )
    assert grids[0].seen == [(4, CODES.get(lie, "context"))]
    assert sorted(trained) == [0, 1, 3]


# -- what the server refuses -------------------------------------------------------------------------------------


def bridge(folder: Path, strategy: FedAvg | None = None) -> BridgeGrid:
    return secure(LocalGrid(toy(SecureClientApp()), {}, 4), strategy or FedAvg(), folder=folder)


def to(node: int, content: RecordDict, kind: str = "train") -> Message:
    return Message(content, node, kind)


def sent(**more: Any) -> RecordDict:
    return RecordDict({"arrays": initial(), **more})


IMPOSSIBLE: dict[str, tuple[Callable[[], list[Message]], str]] = {
    "a query": (lambda: [to(2, sent(), "query")], "messages of type query have no place"),
    "two types": (lambda: [to(2, sent()), to(3, sent(), "evaluate")], "of type evaluate, train"),
    "no arrays": (lambda: [to(2, RecordDict({"config": ConfigRecord()}))], "carries arrays and config"),
    "another record": (lambda: [to(2, sent(trees=initial()))], "carries arrays and config"),
    "each something else": (
        lambda: [to(n, sent(config=ConfigRecord({"node": n}))) for n in (2, 3)],
        "sends each site something else",
    ),
    "a list": (lambda: [to(2, sent(config=ConfigRecord({"lr": [0.1, 0.2]})))], "config.lr: is no single"),
    "bytes": (lambda: [to(2, sent(config=ConfigRecord({"key": b"k"})))], "config.key: is no single"),
    "not a number": (
        lambda: [to(2, sent(config=ConfigRecord({"lr": math.nan})))],
        "config.lr: is no single",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_summed_is_refused_before_anything_is_sent(case: str, tmp_path: Path) -> None:
    messages, said = IMPOSSIBLE[case]
    folder = federation(tmp_path, terms())
    with found(folder):
        grid = bridge(folder)
        with pytest.raises(ConfigError, match=said):
            grid.send_and_receive(messages())
    assert not (folder / "0" / "ledger").exists()


def test_a_strategy_samples_members_only_and_counts_by_its_own_key(tmp_path: Path) -> None:
    folder = federation(tmp_path, terms())
    with found(folder):
        grid = bridge(folder, FedAvg(weighted_by_key="rows"))
        assert grid.get_node_ids() == [2, 3, 4, 5]
        [reply] = grid.send_and_receive([to(node, sent()) for node in grid.get_node_ids()])
    assert dict(reply.content.metric_records["metrics"]) == {"rows": 4.0}
    model = numpy(reply.content.array_records["arrays"])
    assert {name: array.dtype for name, array in model.items()} == {"w": np.float32, "count": np.int64}
    assert model["count"] == 0
    assert list(grid.send_and_receive([])) == []


BROKEN = {
    "no folder": (None, "TACIT_FEDERATION: names no folder"),
    "no file": ("", "bridge.toml: cannot be read: No such file"),
    "an unknown key": ('app = "a:b"\nclip = 1', "bridge.toml: clip: unknown key"),
    "no app": ("rounds = 3", "bridge.toml: app: "),
    "no TOML": ("app = ", "not valid TOML"),
    "not secure": ('app = "a:b"\n[secure_aggregation]\nenabled = false', "without the secure sum"),
    "too many drop-outs": ('app = "a:b"\n[secure_aggregation]\nmax_dropouts = 2', "max_dropouts = 2"),
    "no module": ('app = "a"', "module:object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_is_no_federation_is_refused_by_file_and_key(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, said = BROKEN[case]
    monkeypatch.delenv("TACIT_FEDERATION", raising=False)
    folder = federation(tmp_path, terms())
    path = folder / "bridge.toml"
    path.write_text(text) if text else path.unlink()
    with found(folder) if text is not None else monkeypatch.context(), pytest.raises(ConfigError, match=said):
        bridge(folder) if text is not None else secure(LocalGrid(ClientApp(), {}, 4), FedAvg())


def test_an_app_of_flowers_older_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="client_fn cannot be bridged"):
        SecureClientApp(lambda context: None)  # type: ignore[arg-type]
