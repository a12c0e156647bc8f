"""The site's say: what it refuses, with which code, and that what is spent stays spent."""

import sys

import numpy as np
import pytest
import tomli_w

from client import guard, submission
from client.participant import Run, participant_of
from tacit.encoding import STATISTICS
from tacit.errors import ProtocolError, Refused
from tacit.privacy.accountant import fits
from tests.unit.client_sites import (
    DECLARED,
    LABELS,
    POLICY,
    RECORD,
    SINGLE,
    Round,
    answer,
    debits,
    experiment,
    model,
    participant,
    participants,
    setup_request,
    write_site,
    write_sites,
)

CEILING = {**POLICY, "epsilon_ceiling": 2.0, "delta": 1e-3}


@pytest.fixture(scope="module")
def private():
    return experiment()


@pytest.fixture(scope="module")
def arrays(private):
    return model(private)


def moved(arrays, by):
    return {name: array + np.float32(by) for name, array in arrays.items()}


def code(call, *arguments):
    with pytest.raises((Refused, ProtocolError)) as error:
        call(*arguments)
    return error.value.reason


def spend(clients, arrays, rounds, run_id="run-1"):
    for number in range(1, rounds + 1):
        Round(clients, moved(arrays, number), round_number=number, run_id=run_id).keys().vectors().sum()


def test_a_site_whose_budget_is_spent_refuses_in_every_run_and_after_every_restart(tmp_path, private, arrays):
    """In this run; in the next on the same ledger, under the policy's ceiling; in a fresh process."""
    folders = write_sites(tmp_path, policy=CEILING)
    clients = participants(Run(private.to_toml()), folders)
    spend(clients, arrays, private.training.rounds)
    again = setup_request(clients[0].run, arrays, round_number=4)
    for client in (
        clients[0],
        participant(folders[0], private),
        participant(folders[0], private, on_disk=True),
    ):
        assert code(submission.setup, client, again, arrays) == "budget-spent"
    other = setup_request(clients[0].run, arrays, run_id="run-2")
    for client in (clients[0], participant(folders[0], private)):
        assert code(submission.setup, client, other, arrays) == "budget-spent"
    assert len(debits(folders[0])) == private.training.rounds


def test_without_a_ceiling_each_run_has_its_own_budget_and_all_are_in_the_ledger(tmp_path, private, arrays):
    clients = participants(Run(private.to_toml()), write_sites(tmp_path))
    spend(clients, arrays, 4)
    beyond = setup_request(clients[0].run, arrays, round_number=4)
    assert code(submission.setup, clients[0], beyond, arrays) == "budget-spent"
    Round(clients, arrays, run_id="run-2").keys().vectors()
    assert [(entry.run, entry.round) for entry in debits(tmp_path / "north")][3:] == [
        ("run-1", 4),
        ("run-2", 1),
    ]


def test_a_run_without_privacy_is_in_the_ledger_and_no_ceiling_holds_after_it(tmp_path, private, arrays):
    """Before its first update leaves, once in this process; what it has cost is infinite, for good."""
    open_run = Run(experiment(private=False).to_toml())
    clients = participants(open_run, write_sites(tmp_path))
    for number in (1, 2):
        Round(clients, moved(arrays, number), round_number=number, run_id="open").keys().vectors()
    (entry,) = debits(tmp_path / "north")
    assert (entry.run, entry.round, entry.unit, entry.event) == (
        "open",
        1,
        "none",
        open_run.plan.round_event(),
    )
    (tmp_path / "north" / "policy.toml").write_text(tomli_w.dumps(CEILING))
    later = participant(tmp_path / "north", private)
    asked = setup_request(later.run, arrays, run_id="later")
    assert code(submission.setup, later, asked, arrays) == "budget-spent"
    with later.site.ledger() as ledger:
        assert ledger.spent(1e-3) == np.inf


@pytest.mark.parametrize("kind", ["private", "open"])
def test_a_release_is_entered_whatever_its_run_is_called(tmp_path, kind):
    client = participant(write_site(tmp_path / "north"), experiment(private=kind == "private"))
    client.debit("", 1, attempt=1)
    assert [entry.run for entry in debits(client.site.folder)] == [""]


@pytest.mark.parametrize("run_id", ["", "x" * 65, "two\nlines", "\x1b[2J", "\u202erun"])
def test_an_id_that_is_none_is_refused_wherever_it_comes_in(tmp_path, arrays, run_id):
    plain, secure = {"secure_aggregation__enabled": False}, {}
    for name, changes, kind in (
        ("a", plain, "train"),
        ("b", plain, "train.ideal"),
        ("c", secure, "train.tacit0"),
    ):
        folder, made = write_site(tmp_path / name, policy={**POLICY, **SINGLE}), experiment(**changes)
        body = setup_request(Run(made.to_toml()), arrays, run_id=run_id) if kind == "train.tacit0" else None
        reply = answer(folder, made, kind, arrays, run_id=run_id, body=body)
        assert reply.error.reason == "refused:run"
        assert debits(folder) == []


def test_a_run_that_has_paid_under_one_experiment_is_refused_under_every_other_after_a_restart_too(
    tmp_path, private, arrays
):
    """Else the second one would go on as the first: with its figure, and with what the first one has paid."""
    folder = write_site(tmp_path / "north", policy={**POLICY, **SINGLE})
    changes = {"secure_aggregation__enabled": False, "training__learning_rate": 0.25}
    others = experiment(**changes), experiment(private=False, **changes)
    participant(folder, private).debit("run-1", 1, attempt=1)
    for other in others:
        participant_of.cache_clear()
        assert answer(folder, other, "train", arrays).error.reason == "refused:experiment"
        assert code(participant(folder, other).debit, "run-1", 2, 1) == "experiment"
        assert answer(folder, other, "train", arrays, run_id="run-2").has_content() == (other is others[0])
    later = participant(folder, private)
    later.guard("run-1", 2, arrays)
    later.debit("run-1", 2, attempt=1)
    assert [(entry.run, entry.round) for entry in debits(folder)] == [
        ("run-1", 1),
        ("run-2", 1),
        ("run-1", 2),
    ]
    assert {entry.experiment for entry in debits(folder) if entry.run == "run-1"} == {later.run.digest.hex()}


def test_noise_that_the_server_can_draw_again_is_entered_as_no_noise(tmp_path, private, arrays):
    both = {"record": RECORD, "client": {"epsilon": 3.0, "delta": 1e-2}}
    client = participant(write_site(tmp_path / "north"), experiment(insecure_seeded_noise=True, privacy=both))
    for number in (1, 2):
        client.guard("run-1", number, arrays)
        client.debit("run-1", number, attempt=1)
    with client.site.ledger() as ledger:
        made = [(entry.round, entry.purpose) for entry in ledger.entries]
        assert made == [(1, "training"), (1, "sum"), (2, "training"), (2, "sum")]
        assert {(entry.unit, entry.event.noise_multiplier) for entry in ledger.entries} == {("none", 0.0)}
        assert ledger.spent(1e-3) == ledger.spent(1e-3, "client") == np.inf
    (client.site.folder / "policy.toml").write_text(tomli_w.dumps(CEILING))
    assert code(participant(client.site.folder, private).guard, "run-2", 1, arrays) == "budget-spent"


def test_metrics_count_towards_the_ceiling(tmp_path):
    """What a round releases besides the update is part of its price before it, and not only after."""
    record = {**RECORD, "metrics_share": 0.5}
    settings = experiment(privacy={"record": record}, evaluation={"metrics": True})
    plan = Run(settings.to_toml()).plan
    both = list(plan.releases(1).values())
    ceiling = next(
        float(c)
        for c in np.arange(1.3, 2.0, 0.01)
        if fits([*both, plan.round_event()], c, 1e-3) and not fits([*both, *both], c, 1e-3)
    )
    client = participant(
        write_site(tmp_path / "north", policy={**CEILING, "epsilon_ceiling": ceiling}), settings
    )
    client.debit("run-1", 1, attempt=1)
    with client.site.ledger() as ledger:
        assert code(guard.check_budget, client.run, client.site, ledger, "run-2", 1) == "budget-spent"
    assert [entry.purpose for entry in debits(client.site.folder, "metrics")] == ["metrics"]


def test_of_two_runs_that_both_passed_the_guard_one_is_paid(tmp_path):
    """The ceiling is checked again under the ledger's lock, when the debit is made."""
    settings = experiment(training__rounds=1)
    run, folders = Run(settings.to_toml()), write_sites(tmp_path, policy=CEILING)
    rounds = [
        Round(participants(run, folders), model(settings), run_id=name).keys() for name in ("one", "two")
    ]
    rounds[0].vectors().sum()
    for client, request in rounds[1].by_index(rounds[1].mask_requests):
        assert code(submission.mask, client, request) == "budget-spent"
    assert [entry.run for entry in debits(folders[0])] == ["one"]


def test_B27_rounds_faster_than_the_policy_allows_are_refused(tmp_path, private, arrays):
    clients = participants(
        Run(private.to_toml()), write_sites(tmp_path, policy={**POLICY, "max_rounds_per_hour": 2})
    )
    spend(clients, arrays, 2)
    third = setup_request(clients[0].run, arrays, round_number=3)
    assert code(submission.setup, clients[0], third, arrays) == "rate"


def test_B9_a_sum_over_too_few_for_the_sites_policy_is_refused_before_anything_is_spent(tmp_path):
    """The server says how many it invites, whatever the experiment says; the policy speaks of the sum itself."""
    declared = [{"label": label, "rows": DECLARED} for label in (*LABELS, "east")]
    settings = experiment(federation={"sites": declared})
    folders = write_sites(tmp_path, policy={"min_honest": 3})  # as many as four less one corrupt
    clients = participants(Run(settings.to_toml()), folders)
    round_ = Round(clients, model(settings)).keys()
    for client, request in round_.by_index(round_.mask_requests):
        assert code(submission.mask, client, request) == "cohort"
    assert [debits(folder) for folder in folders] == [[], [], []]


BAD_MODELS = {
    "NaN": (lambda a: {**a, "0.bias": np.array([0.0, np.nan], np.float32)}, "model-values"),
    "infinite": (lambda a: {**a, "0.bias": np.array([np.inf, 0.0], np.float32)}, "model-values"),
    "an array too few": (lambda a: {"0.bias": a["0.bias"]}, "model-layout"),
    "an array too many": (lambda a: {**a, "0.extra": a["0.bias"]}, "model-layout"),
    "another shape": (lambda a: {**a, "0.weight": a["0.weight"].T.copy()}, "model-layout"),
    "float64": (lambda a: {**a, "0.bias": a["0.bias"].astype(np.float64)}, "model-layout"),
    "integers": (lambda a: {**a, "0.bias": np.zeros(2, dtype=np.int64)}, "model-layout"),
    "text": (lambda a: {**a, "0.bias": np.array(["x", "y"])}, "model-layout"),
    "nothing": (lambda a: {}, "model-layout"),
    "statistics in a round of training": (lambda a: {STATISTICS: np.zeros(3, np.float32)}, "round"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_B25_a_model_that_is_not_the_tasks_own_or_not_finite_is_refused(tmp_path, private, arrays, case):
    spoil, reason = BAD_MODELS[case]
    client = participant(write_site(tmp_path / "north"), private)
    assert code(client.guard, "run-1", 1, spoil(arrays)) == reason
    client.guard("run-1", 1, arrays)
    assert debits(client.site.folder) == []


@pytest.mark.parametrize("number", [0, 5, 10**12])
def test_a_round_that_the_experiment_has_not_is_refused(tmp_path, private, arrays, number):
    client = participant(write_site(tmp_path / "north"), private)
    assert code(client.guard, "run-1", number, arrays) == "round"


POLICIES = {
    "secure-aggregation": ({}, {"secure_aggregation__enabled": False}),
    "single-update": ({"require_secure_aggregation": False}, {"secure_aggregation__enabled": False}),
    "cohort": ({"min_honest": 3}, {}),
    "update-norm": ({"max_update_norm": 1.0}, {}),
    "model-size": ({"max_model_parameters": 9}, {}),
    "task": ({"allowed_tasks": []}, {}),
    "budget": ({"epsilon_ceiling": 1.0, "delta": 1e-3}, {}),
    "delta": ({"delta": 1e-4}, {}),
    "not-private": ({"epsilon_ceiling": 9.0, "delta": 1e-3}, {"insecure_seeded_noise": True}),
}


@pytest.mark.parametrize("reason", POLICIES)
def test_policy_refusals_arrive_with_their_reason_code_and_nothing_else(tmp_path, arrays, reason):
    policy, changes = POLICIES[reason]
    folder = write_site(tmp_path / "north", policy={**POLICY, **policy})
    for kind in ("train", "train.ideal", *(f"train.tacit{i}" for i in range(5))):
        reply = answer(folder, experiment(**changes), kind, arrays)
        assert (reply.error.reason, reply.has_content()) == (f"refused:{reason}", False)
    assert not (folder / "ledger").exists()


def test_an_unprivate_run_is_refused_where_there_is_a_ceiling(tmp_path, arrays):
    folder = write_site(tmp_path / "north", policy=CEILING)
    assert (
        answer(folder, experiment(private=False), "train.tacit0", arrays).error.reason
        == "refused:not-private"
    )


def test_a_policy_tightened_between_two_messages_holds_from_the_next_start(tmp_path, private, arrays):
    folder = write_site(tmp_path / "north")
    body = setup_request(Run(private.to_toml()), arrays)
    first = answer(folder, private, "train.tacit0", arrays, sessions="folder", body=body)
    assert first.has_content()
    (folder / "policy.toml").write_text(tomli_w.dumps({**CEILING, "epsilon_ceiling": 1.0}))
    participant_of.cache_clear()
    second = answer(folder, private, "train.tacit0", arrays, sessions="folder", body=body)
    assert second.error.reason == "refused:budget"


def test_no_code_that_an_experiment_names_is_imported_or_called_before_the_policy_has_allowed_it(
    tmp_path, monkeypatch
):
    """A kind names any callable that is installed, and options are its arguments."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "planted_module.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('imported').touch()\ndef build(**options): ...\n"
    )
    folder = write_site(tmp_path / "north", policy=None)
    for kind, options in (
        ("planted_module:build", {}),
        ("subprocess:getoutput", {"cmd": f"touch {tmp_path / 'called'}"}),
    ):
        settings = experiment(task={"kind": kind, "options": options})
        for message in ("train", "train.tacit0", "train.tacit4"):
            assert answer(folder, settings, message, {}).error.reason == "refused:task"
    assert {path.name for path in tmp_path.iterdir()} == {"planted_module.py", "north"}
    assert "planted_module" not in sys.modules


def test_a_site_is_no_member_of_an_experiment_that_does_not_declare_it(tmp_path, private, arrays):
    folder = write_site(tmp_path / "east", "east", data="x\n")
    assert answer(folder, private, "train.tacit0", arrays).error.reason == "refused:not-a-member"
