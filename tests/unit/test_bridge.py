"""Other people's Flower apps over the secure sum: one line on each side, and nothing of an app leaves in the clear."""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from client.bridge import SecureClientApp
from simulations.bridge import command, make_federation
from simulations.local_grid import LocalGrid
from strategies.grids import WrappedGrid
from tacit.bridge import Terms
from tacit.errors import ConfigError, RunFailed
from tests.unit.bridged_app import (
    APP,
    PAGE,
    ROWS,
    answer,
    federation,
    found,
    initial,
    loaded,
    numpy,
    page_terms,
    records,
    run_app,
    start,
    terms,
    toy,
    with_the_lines,
)

QUIET = {"fraction_evaluate": 0.0}


@pytest.fixture
def two_rounds(tmp_path: Path) -> dict[str, Any]:
    import shutil

    for name in ("before", "after"):
        shutil.copytree(APP, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return {"num-server-rounds": 2}


# -- the page ----------------------------------------------------------------------------------------------------


def test_the_app_of_the_page_gives_the_same_model_with_the_one_line_on_each_side(
    tmp_path: Path, two_rounds: dict[str, Any]
) -> None:
    assert with_the_lines(tmp_path / "after") == 4, "a line and its import on each side"
    make_federation(tmp_path / "federation", page_terms(), (1, 1, 1))
    with found(tmp_path / "federation"):
        for name in ("before", "after"):
            run_app(tmp_path / name, tmp_path / f"{name}.pt", **two_rounds)
    before, after = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("before", "after"))
    assert list(before) == list(after)
    with loaded(tmp_path / "before") as (server, _):
        torch.manual_seed(0)
        untrained = server.Net().state_dict()
    for name in set(before) - {"norm.num_batches_tracked"}:
        assert (before[name] - after[name]).abs().max() < 0.002, name
    moved = torch.cat([(after[name] - untrained[name]).flatten() for name in untrained]).norm()
    assert moved > 1
    assert after["norm.num_batches_tracked"] == 0, "a counter has no mean and stays"
    for i in range(3):  # no figure for a run without privacy but infinity
        ledger = (tmp_path / "federation" / str(i) / "ledger" / "ledger.jsonl").read_text().splitlines()
        assert [json.loads(line)["purpose"] for line in ledger] == ["training"]


@pytest.mark.parametrize("changed", ["server_app.py", "client_app.py"])
def test_one_line_without_the_other_sends_no_update(
    changed: str, tmp_path: Path, two_rounds: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_the_lines(tmp_path / "after")
    (tmp_path / "before" / "quickstart" / changed).write_text(
        (tmp_path / "after" / "quickstart" / changed).read_text()
    )
    impatient = page_terms().model_dump()
    impatient["secure_aggregation"]["deadline_seconds"] = 0.3
    make_federation(tmp_path / "federation", Terms.model_validate(impatient), (1, 1, 1))
    answers: list[Message] = []
    real = LocalGrid.pull_messages

    def noting(self: LocalGrid, message_ids: Iterable[str]) -> Iterable[Message]:
        answers.extend(found := list(real(self, message_ids)))
        return found

    monkeypatch.setattr(LocalGrid, "pull_messages", noting)
    alone = changed == "server_app.py"  # ends the run; without it, Flower logs refusals and comes to no model
    ends = pytest.raises(RunFailed, match="never came") if alone else nullcontext()
    with found(tmp_path / "federation"), ends:
        run_app(tmp_path / "before", tmp_path / "model.pt", **two_rounds)
    assert answers
    assert all(message.has_error() for message in answers)
    if not alone:
        assert {m.error.reason for m in answers} == {"refused:single-update", "refused:evaluation"}
        assert torch.load(tmp_path / "model.pt", weights_only=True) == {}


def test_the_page_names_every_key_of_bridge_toml() -> None:
    named = {line.split("`")[1].strip("[]") for line in PAGE.splitlines() if line.startswith("| `")}
    assert set(Terms.model_fields) <= named


def test_the_command_of_the_page_makes_a_federation_that_runs(tmp_path: Path) -> None:
    command("toy:app", tmp_path / "federation", sites=4)
    command("toy:app", tmp_path / "federation", sites=4)  # again changes nothing
    result = start(FedAvg(**QUIET), toy(SecureClientApp()), tmp_path / "federation", num_rounds=1)
    assert numpy(result.arrays)["w"][1] == pytest.approx(0.125, abs=1e-3)
    with pytest.raises(ConfigError, match="is for toy:app"):
        command("other:app", tmp_path / "federation", sites=4)


# -- what leaves a site ------------------------------------------------------------------------------------------

REFUSED = {
    "train": "single-update",
    "train.ideal": "single-update",
    "train.mine": "single-update",
    "train.tacit5": "single-update",
    "evaluate": "evaluation",
    "evaluate.tacit0": "evaluation",
    "query": "query",
    "query.mine": "query",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_no_answer_of_the_app_leaves_in_the_clear(kind: str, tmp_path: Path) -> None:
    called: list[str] = []
    app = toy(SecureClientApp(), lambda *_: called.append("train"))  # type: ignore[arg-type,func-returns-value]

    @app.train("mine")
    @app.query("mine")
    @app.query()
    def tell(message: Message, context: Context) -> Message:
        called.append("tell")
        return Message(RecordDict({"secret": ConfigRecord({"rows": 7})}), reply_to=message)

    content = RecordDict({"arrays": initial(), "config": ConfigRecord()})
    with found(federation(tmp_path, terms(evaluate_metrics={"eval_loss": 1.0}))):
        [reply] = LocalGrid(app, {}, 4).send_and_receive([Message(content, 2, kind)])
    assert reply.has_error() and reply.error.reason == f"refused:{REFUSED[kind]}"
    assert called == []


def test_what_the_server_gets_are_canonical_messages_and_masked_words(tmp_path: Path) -> None:
    answers: list[Message] = []

    class Noting(WrappedGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            answers.extend(found := list(super().pull_messages(message_ids)))
            return found

    agreed = terms(evaluate_metrics={"eval_loss": 8.0})
    start(FedAvg(), toy(SecureClientApp()), federation(tmp_path, agreed), num_rounds=2, around=Noting)
    held = Counter(frozenset(answer.content) for answer in answers if answer.content.array_records)
    assert held == {frozenset({"tacit", "vector"}): 16}  # four sites, two sums in each of two rounds
    for message in answers:
        assert not message.content.metric_records
        assert list(message.content.config_records["tacit"]) in (["body"], ["label"])


def test_how_much_was_cut_is_in_the_sites_own_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def far(site: int, model: dict[str, np.ndarray], config: Any) -> RecordDict:
        return records({**model, "w": model["w"] + np.float32(50 if site == 1 else 0.5)}, {})

    folder = federation(tmp_path, terms())
    with caplog.at_level(logging.INFO, "client.bridged"):
        result = start(FedAvg(**QUIET), toy(SecureClientApp(), far), folder, num_rounds=1)
    said = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "client.bridged"]
    assert ("WARNING", "sum 1: an update of norm 100 was cut to 2") in said
    assert said.count(("INFO", "sum 1: an update of norm 1, within the clip norm 2")) == 3
    assert np.allclose(numpy(result.arrays)["w"], (3 * 0.5 + 1.0) / 4, atol=1e-4)


@pytest.mark.parametrize("weights", ["equal", "declared"])
def test_weights_are_public_and_the_apps_own_number_of_rows_stays(weights: str, tmp_path: Path) -> None:
    def boasting(site: int, model: dict[str, np.ndarray], config: Any) -> RecordDict:
        content = answer(site, model, config)
        content.metric_records["metrics"]["num-examples"] = 10**6 if site == 1 else 1
        return content

    agreed, results = terms(weights=weights), []
    for name, how in (("honest", answer), ("boasting", boasting)):
        folder = federation(tmp_path / name, agreed)
        results.append(
            numpy(start(FedAvg(**QUIET), toy(SecureClientApp(), how), folder, num_rounds=1).arrays)
        )
    assert np.array_equal(results[0]["w"], results[1]["w"])
    shares = np.array(ROWS if weights == "declared" else [1] * 4) / (
        sum(ROWS) if weights == "declared" else 4
    )
    assert results[0]["w"][0] == pytest.approx(0.5 * (shares @ np.arange(4) / 4), abs=1e-4)


def test_metrics_are_cut_to_their_range_and_weighted_like_the_model(tmp_path: Path) -> None:
    agreed = terms(weights="declared", train_metrics={"train_loss": 0.5})  # the last site reports 0.75
    result = start(FedAvg(**QUIET), toy(SecureClientApp()), federation(tmp_path, agreed), num_rounds=1)
    expected = np.array(ROWS) @ np.array([0, 0.25, 0.5, 0.5]) / sum(ROWS)
    assert dict(result.train_metrics_clientapp[1]) == {"train_loss": pytest.approx(expected, abs=1e-4)}


def test_without_evaluate_metrics_no_site_evaluates_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = start(FedAvg(), toy(SecureClientApp()), federation(tmp_path, terms()), num_rounds=2)
    assert list(result.train_metrics_clientapp) == [1, 2]
    assert result.evaluate_metrics_clientapp == {}
    assert "no site evaluates: bridge.toml names no evaluate_metrics" in caplog.text


def test_the_apps_mods_and_its_lifespan_are_around_its_own_functions_only(tmp_path: Path) -> None:
    seen: list[str] = []

    def mod(message: Message, context: Context, call: Any) -> Message:
        seen.append(message.metadata.message_type)
        return call(message, context)  # type: ignore[no-any-return]

    app = toy(SecureClientApp(mods=[mod]))

    @app.lifespan()
    def around(context: Context) -> Iterable[None]:
        seen.append("begins")
        yield

    agreed = terms(evaluate_metrics={"eval_loss": 8.0})
    start(FedAvg(), app, federation(tmp_path, agreed), num_rounds=1)
    assert seen == ["begins", "train"] * 4 + ["begins", "evaluate"] * 4
