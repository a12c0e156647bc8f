"""A search that is counted: what it needs, what it draws, what it keeps to itself, and its total."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import get_args

import pytest

from simulations.tuning import counted
from simulations.tuning.folder import SearchFolder
from simulations.tuning.outcome import best_of, public_of, record_of, terminal_table
from simulations.tuning.search import Search, value_of
from simulations.tuning.space import Trials, Tuning
from tacit import config
from tacit.errors import ConfigError
from tacit.privacy.plan import PrivacyPlan
from tacit.privacy.selection import NumTrials, epsilon_of_best
from tacit.report.record import Final
from tacit.report.storage import write_json
from tests.unit.report_records import run_record
from tests.unit.searches import BASE, PRIVATE, SPACE, lines, search, searched, tune

# Noise is the operating system's: with this much of a budget no metric drowns in it, whatever is drawn.
CLEAR = "privacy.record.epsilon=100"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(BASE)
    return path


# -- what is counted ---------------------------------------------------------------------------------------------


def test_a_search_whose_cost_the_theorem_does_not_bound_is_refused(base: Path, tmp_path: Path) -> None:
    def check(settings: str = PRIVATE, space: str = SPACE, *sets: str) -> None:
        tuning, dimensions, path = searched(tmp_path, settings, space)
        trials = Trials(base, sets, path)
        counted.check(tuning, trials.trial({}), trials.corners(dimensions), source=str(path))

    check()
    listed = "[tuning.space]\ntask.model.hidden = [[8], [16]]\n"
    cases: list[tuple[str, tuple[str, ...]]] = [
        ('needs method = "random"', ('accounting = "private"\nmethod = "bayesian"',)),
        ('needs method = "random"', ('accounting = "private"\nmethod = "grid"', listed)),
        ("a single one hides nothing", (f"{PRIVATE}trials = 1",)),
        ("needs trials that are private themselves", (PRIVATE, listed, "privacy=none")),
        ("without seeded noise", (PRIVATE, SPACE, "insecure_seeded_noise=true")),
        ("metrics that they have paid for", (PRIVATE, SPACE, "evaluation.metrics=false")),
    ]
    client = ("privacy.client.epsilon=3", "privacy.client.delta=1e-5", "strategy.weights=equal")
    cases.append(("would be left out", (PRIVATE, SPACE, *client)))
    for space in (
        'training.local_steps = "1..3"',
        "privacy.record.delta = [1e-5, 1e-6]",
        "privacy.record.reserve = [0.1, 2.0]",
        "insecure_seeded_noise = [false, true]",
        'evaluation.monitor = ["accuracy", "loss"]',
        "evaluation.patience = [0, 2]",
    ):
        key = space.split(" = ")[0].replace(".", r"\.")
        cases.append(
            (rf"tuning\.space\.{key}: changes what a run releases", (PRIVATE, f"[tuning.space]\n{space}"))
        )
    for words, arguments in cases:
        with pytest.raises(ConfigError, match=words) as caught:
            check(*arguments)
        assert str(caught.value).startswith(str(tmp_path / "search.toml"))


def test_every_release_of_a_trial_is_in_the_total(base: Path, tmp_path: Path) -> None:
    tuning, _, path = searched(tmp_path, f"{PRIVATE}trials = 5\neta = 0.0")
    experiment = Trials(base, (), path).trial({})
    plan = PrivacyPlan.of(experiment)
    metrics = plan.metrics_event()
    assert metrics is not None and plan.debits > plan.rounds
    by_hand = [metrics] * plan.debits + [plan.round_event()] * plan.debits
    found = counted.total_epsilon(tuning, experiment)
    assert found == pytest.approx(epsilon_of_best(by_hand, 1e-5, NumTrials(5, 0.0)), rel=1e-9)
    assert found > 1.3 * plan.epsilon


def test_the_values_and_the_number_of_counted_trials_come_from_the_operating_system(
    base: Path, tmp_path: Path
) -> None:
    text = f"{PRIVATE}trials = 3\nseed = 5"
    found = [search(base, tmp_path / str(i), text) for i in range(40)]
    totals = [one.total for one in found]
    assert min(totals) == 1 and len(set(totals)) >= 3, "P < 1e-6"
    first = {json.dumps(one.values[0]) for one in found}
    assert len(first) == 40 and all(len(one.values) == one.total for one in found)


def test_a_counted_search_that_is_gone_on_with_keeps_its_number_and_its_values(
    base: Path, tmp_path: Path
) -> None:
    text = f"{PRIVATE}trials = 40"
    before = search(base, tmp_path / "out", text)
    after = search(base, tmp_path / "out", text)
    assert (after.total, after.values) == (before.total, before.values)
    with pytest.raises(ConfigError, match=r"tuning\.trials: the search was begun with 40, and now it is 41"):
        search(base, tmp_path / "out", text.replace("40", "41"))


def test_a_counted_trial_that_has_failed_is_never_tried_again(base: Path, tmp_path: Path) -> None:
    text = f"{PRIVATE}trials = 40"
    found = search(base, tmp_path / "out", text)
    found.done(0, "no update arrived")
    folder = SearchFolder(tmp_path / "out", counted=True)
    assert folder.is_finished(found.cell(0)) and search(base, tmp_path / "out", text).num_finished == 1
    open_ended = search(base, tmp_path / "open", "trials = 3")
    list(open_ended.cells())
    open_ended.done(0, "no update arrived")
    assert search(base, tmp_path / "open", "trials = 3").num_finished == 0


def test_a_counted_trial_that_has_failed_while_nobody_noticed_is_never_tried_again(
    base: Path, tmp_path: Path
) -> None:
    for settings, place, num_finished in (
        (f"{PRIVATE}trials = 40", "private/trials", 1),
        ("trials = 3", "trials", 0),
    ):
        out = tmp_path / str(num_finished)
        list(search(base, out, settings).cells())
        state = out / place / "0001" / "server"
        state.mkdir(parents=True)
        (state / "failure.json").write_text('{"error": "no update arrived"}')
        found = search(base, out, settings)
        assert found.num_finished == num_finished
        if num_finished:
            assert found.failure(found.cell(0)) == "see trials/0001/server/failure.json"


def test_a_counted_search_that_cannot_begin_keeps_its_number(base: Path, tmp_path: Path) -> None:
    space = "[tuning.space]\ntask.model.heads = [3, 5]\ntask.model.hidden = [[16], [22]]\n"
    totals = set()
    for _ in range(6):
        with pytest.raises(ConfigError, match="of 100 trials none is possible"):
            search(base, tmp_path / "out", f"{PRIVATE}trials = 40", space, "task.model.name=transformer")
        asked = json.loads((tmp_path / "out" / "private" / "search.json").read_text())
        assert asked["values"] == []
        totals.add(asked["total"])
    assert len(totals) == 1, "P < 1e-6"


def test_values_that_would_release_something_else_are_drawn_again(base: Path, tmp_path: Path) -> None:
    space = "[tuning.space]\ntraining.local_steps = [1, 2]\ntask.model.hidden = [[8], [16]]\n"
    found = [search(base, tmp_path / str(i), f"{PRIVATE}trials = 9", space) for i in range(3)]
    assert {values["training.local_steps"] for one in found for values in one.values} == {1}


def test_counted_trials_are_compared_by_what_they_have_paid_for() -> None:
    record = run_record()
    exact, paid = (
        record.final.metrics["accuracy"],
        [item.private_metrics["accuracy"] for item in record.rounds],
    )
    space = {"seed": [1]}
    assert value_of(record, Tuning(space=space, metric="accuracy")) == exact
    assert value_of(record, Tuning(space=space, accounting="private")) == paid[-1] != exact
    assert value_of(record, Tuning(space=space, accounting="private", round="best")) == max(paid)
    assert value_of(record, Tuning(space=space)) == record.final.metrics["auroc"]
    emptied = (*record.rounds[:-1], record.rounds[-1].model_copy(update={"private_metrics": {}}))
    rest = record.model_copy(update={"rounds": emptied})
    assert value_of(rest, Tuning(space=space, accounting="private", round="best")) == max(paid[:-1])
    assert value_of(rest, Tuning(space=space, accounting="private")) is None
    lowest = min(*(item.metrics["loss"] for item in record.rounds), record.final.metrics["loss"])
    assert value_of(record, Tuning(space=space, metric="loss", round="best")) == lowest
    with pytest.raises(ConfigError, match=r"tuning\.metric: there is no metric 'auroc'; there are accuracy"):
        value_of(record, Tuning(space=space, metric="auroc", accounting="private"))


def test_the_best_of_equals_does_not_depend_on_when_it_came_where_it_is_counted() -> None:
    record, values = run_record(), [{"seed": 1}, {"seed": 3}, {"seed": 2}]
    plain, paid = Tuning(space={"seed": [1]}), Tuning(space={"seed": [1]}, accounting="private")
    same = dict.fromkeys(range(3), record)
    assert best_of(same, cells_values=values, tuning=plain) == 0
    assert best_of(same, cells_values=values, tuning=paid) == 1
    assert best_of(same, cells_values=values[::-1], tuning=paid) == 1
    assert best_of({}, cells_values=values, tuning=paid) is None
    losses = {n: run_record(final=Final(metrics={"loss": loss})) for n, loss in enumerate((9.0, 0.1, 0.5))}
    assert best_of(losses, cells_values=values, tuning=Tuning(space={"seed": [1]}, metric="loss")) == 1


def test_data_are_public_where_they_are_published_generated_or_stated_to_be() -> None:
    plain, public, paid = (
        Tuning.model_validate({"space": {"seed": [1]}, "accounting": name})
        for name in ("none", "public", "private")
    )
    known = {"generated": "they are generated, of nobody"}
    for source in ("breast_cancer", "heart_disease", "credit_default", "digits", "medmnist"):
        known[source] = f"{source} is a published data set"
    for source in get_args(config.Data.model_fields["source"].annotation):
        data = config.Data.model_construct(source=source)
        assert public_of(data, plain) == known.get(source, ""), source
        assert public_of(data, public) == known.get(
            source, "whoever ran it states that they are public or synthetic"
        )
        assert public_of(data, paid) == ""


def test_a_counted_search_tells_nothing_but_its_best_trial(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "out", tmp_path / "search.toml"
    tuning, dimensions, _ = searched(tmp_path, f"{PRIVATE}trials = 2\neta = 0.0")
    assert tune(base, file, "--out", out, "--jobs", 1, "--set", CLEAR) == 0
    assert "publishing the best costs epsilon" in " ".join(capsys.readouterr().out.split())
    content = json.loads((out / "tuning.json").read_text())
    asked = json.loads((out / "private" / "search.json").read_text())
    assert content["trials"] == [] and content["importances"] == {} and content["seed"] is None
    assert (content["best"]["name"], content["best"]["seconds"]) == ("", 0.0)
    assert content["started"].endswith("T00:00:00Z")
    assert len(list(out.glob("private/trials/*/report.json"))) == asked["total"] == len(asked["values"])
    trials = Trials(base, (CLEAR,), file)
    assert content["selection"]["epsilon"] == counted.total_epsilon(tuning, trials.trial({}))
    assert len(lines(out / "tuning.csv")) == 1
    page = (out / "tuning.html").read_text()
    assert "trials/0" not in page and "<svg" not in page and "Papernot and Steinke" in page
    paid = {
        json.loads(path.read_text())["rounds"][-1]["private_metrics"]["accuracy"]: path.parent
        for path in out.glob("private/trials/*/report.json")
    }
    assert content["best"]["value"] == max(paid)
    released = (paid[max(paid)] / "model.safetensors").read_bytes()
    assert (out / "best.safetensors").read_bytes() == released
    assert config.load(out / "best.toml").training.learning_rate in [
        values["training.learning_rate"] for values in asked["values"]
    ]
    folder = SearchFolder(out, counted=True)
    record, _ = record_of(Search(tuning, dimensions, trials, folder), tuning, dimensions, trials, {})
    assert terminal_table(record).row_count == 1


def test_what_tells_of_the_other_trials_of_a_counted_search_lies_in_one_private_folder(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "out", tmp_path / "search.toml"
    tuning, _, _ = searched(
        tmp_path, f"{PRIVATE}trials = 2", "[tuning.space]\npartition.min_rows = [1, 500]\n"
    )
    folder = SearchFolder(out, counted=True)
    with folder.claimed():
        folder.write(tuning, 2, [{"partition.min_rows": 1}, {"partition.min_rows": 500}])
    assert tune(base, file, "--out", out, "--jobs", 1, "--quiet", "--set", CLEAR) == 0
    assert capfd.readouterr() == ("", ""), "one has failed, and nobody is to hear of it"
    assert "min_rows" in (out / "private" / "failed" / "0002.txt").read_text()
    assert len(list((out / "private" / "asked").iterdir())) == 2
    assert {path.name for path in out.iterdir()} == {
        ".tacit-search", "private", "tuning.json", "tuning.csv", "tuning.html", "best.toml",
        "best.safetensors",
    }  # fmt: skip
    assert stat.S_IMODE((out / "private").stat().st_mode) == 0o700
    page = (out / "tuning.html").read_text() + (out / "tuning.json").read_text()
    assert "0002" not in page and "failed" not in page
    searched(tmp_path, "trials = 2", "[tuning.space]\npartition.min_rows = [1, 500]\n")
    assert tune(base, file, "--out", out, "--jobs", 1, "--quiet") == 2
    assert 'was begun with "private"' in capfd.readouterr().err


def test_what_is_published_of_a_counted_search_is_of_the_best_trial_alone(base: Path, tmp_path: Path) -> None:
    """Also where another one, of which nobody is to hear, has no metric that is a number, or failed."""
    text, out, whole = f"{PRIVATE}trials = 40", tmp_path / "out", run_record()
    tuning, dimensions, path = searched(tmp_path, text)
    trials = Trials(base, (), path)
    found = search(base, out, text)
    emptied = tuple(item.model_copy(update={"private_metrics": {}}) for item in whole.rounds)
    for number, record in enumerate((whole.model_copy(update={"rounds": emptied}), whole)):
        cell = found.cell(number)
        write_json(record, out / "private" / "trials" / cell.name / "report.json")
        found.done(number)
    best, _ = record_of(found, tuning, dimensions, trials, {})
    assert best.metric == "accuracy" and best.best is not None and not best.trials
    assert best.best.values == dict(found.values[1]) and best.best.name == ""
