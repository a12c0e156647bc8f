"""One entry per unit of privacy, with that unit's own figures, and who must be trusted for it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from tacit import config
from tacit.privacy.plan import PrivacyPlan
from tacit.report.origins import ORIGINS, WORDS, origins
from tacit.report.promises import privacy_entries
from tacit.report.record import Part, PrivacyEntry, Round, RunRecord, SecureSum
from tacit.report.summary import summary_table
from tests.unit.report_records import deployed, run_record

SITES = "".join(f'[[federation.sites]]\nlabel = "s{i}"\nrows = 500\n' for i in range(20))
RECORD = "[privacy.record]\nepsilon = 4.0\ndelta = 1e-3\n"
CLIENT = "[privacy.client]\nepsilon = 2.0\ndelta = 1e-2\n"
CENTRAL = CLIENT + 'noise = "central"\n'
FTRL = '[strategy]\nname = "dp_ftrl"\nbands = 3\n'
SECURE = SecureSum(enabled=True, engine="protocol", protocol="tacit-1")


def entries(text: str, secure: SecureSum = SECURE, paid: str = "training sum") -> tuple[PrivacyEntry, ...]:
    experiment = config.loads(f'name = "promises"\n{text}\n{SITES}')
    plan = PrivacyPlan.of(experiment)
    ledgers: Any = [
        [SimpleNamespace(purpose=purpose) for purpose in paid.split() * times] for times in (3, 5)
    ]
    return privacy_entries(experiment, plan, ledgers, secure=secure, simulation=True)


def test_each_unit_has_its_own_figures() -> None:
    record, client = entries(RECORD + CLIENT)
    assert (record.unit, record.delta, record.target_epsilon) == ("record", 1e-3, 4.0)
    assert (client.unit, client.delta, client.target_epsilon) == ("client", 1e-2, 2.0)
    assert record.epsilon <= 4.0 and client.epsilon <= 2.0 < (client.epsilon_replaced or 0)
    assert record.accountant.startswith("PLD") and client.accountant.startswith("RDP")
    plan = PrivacyPlan.of(config.loads(f'name = "promises"\n{RECORD + CLIENT}\n{SITES}'))
    assert plan.client is not None and client.noise_multiplier == plan.client.noise_multiplier
    assert client.epsilon_spent == plan.client.epsilon_after(5)  # of the site that paid most
    assert record.epsilon_spent == plan.epsilon_after(5)
    assert "zeros" in client.relation and "19 clients" in client.mechanism and client.max_colluding == 1


@pytest.mark.parametrize(
    ("text", "secure", "trusted"),
    [
        (CLIENT, SECURE, "no single party"),
        (CLIENT, SecureSum(enabled=True, engine="ideal", protocol="tacit-1"), "to follow the protocol"),
        (CENTRAL, SECURE, "the coordinating server: it sees the exact sum"),
        (CENTRAL, SecureSum(enabled=False), "the coordinating server: it sees each client's clipped update"),
        (CENTRAL + FTRL, SECURE, "the coordinating server: it sees the exact sum"),
    ],
)
def test_the_entry_names_who_must_be_trusted(text: str, secure: SecureSum, trusted: str) -> None:
    (entry,) = entries(text, secure, "sum")
    assert trusted in entry.trusted
    central = text.startswith(CENTRAL)
    assert ("the server adds" in entry.mechanism) == (entry.max_colluding is None) == central
    assert ("correlated over 3 rounds" in entry.mechanism) == (FTRL in text)


def test_seeded_noise_promises_nothing_for_either_unit() -> None:
    for entry in entries("insecure_seeded_noise = true\n" + RECORD + CLIENT):
        assert entry.epsilon == entry.epsilon_spent == math.inf and entry.epsilon_replaced is None
        assert entry.epsilon_if_os_noise is not None and entry.epsilon_if_os_noise <= entry.target_epsilon


def test_without_privacy_there_is_one_entry_that_says_so() -> None:
    assert entries("") == (PrivacyEntry.nothing(),)


def keys(model: type[Part], before: str = "") -> set[str]:
    """Every key of a record, with dots; below a key that is one in the table there is nothing more to say."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        key = before + name
        parts = [t for t in (field.annotation, *get_args(field.annotation)) if isinstance(t, type)]
        inner = [part for part in parts if issubclass(part, Part)]
        found |= keys(inner[0], f"{key}.") if inner and key not in ORIGINS else {key}
    return found


def test_I17_every_figure_of_a_record_has_an_origin() -> None:
    assert keys(RunRecord) == set(ORIGINS)
    assert set(ORIGINS.values()) == set(WORDS) and "not private, local only" in WORDS["local"]


def test_I17_what_only_a_simulation_can_know_is_local_and_nothing_of_it_is_in_a_federations_record() -> None:
    """The keys that the record itself refuses in a federation, and the table, say the same."""
    held = dict(origins(run_record()))
    local = {key for key, origin in held.items() if origin == "local"}
    assert local >= {"final.metrics", "final.sites", "baselines", "partition", "rounds.metrics"}
    assert "secure_aggregation.clipped_fraction" in local
    served = dict(origins(deployed()))
    assert "local" not in served.values()
    assert served["final.metrics"] == served["rounds.private_metrics"] == "noised"
    caption = str(summary_table(run_record()).caption)
    assert "not private, local only" in caption and "local only" not in str(summary_table(deployed()).caption)


def test_I17_a_metric_of_a_private_run_that_no_budget_pays_for_cannot_be_recorded() -> None:
    record = run_record()
    learned = Round(round=1, seconds=1.0, cohort=("a",), survivors=("a",), private_metrics={"accuracy": 0.5})
    budget = {**record.experiment["privacy"]["record"], "metrics_share": 0.0}
    unpaid = {**record.experiment, "privacy": {"record": budget}}
    with pytest.raises(ValueError, match="no budget pays for"):
        run_record(rounds=(learned,), experiment=unpaid)
    silent = learned.model_copy(update={"private_metrics": {}})
    assert run_record(rounds=(silent,), experiment=unpaid).is_private
