"""A client under a promise for clients: bounded whatever its data, noise of its own, and each sum paid for."""

from typing import Any

import numpy as np
import pytest

from client import guard, plain
from client.participant import Participant, Run
from tacit.errors import PrivacyBudgetExceeded, Refused
from tacit.privacy.accountant import Event
from tacit.privacy.noise import SystemKeys
from tacit.privacy.plan import SUM
from tacit.secagg.parameters import Rules
from tests.unit.client_sites import LABELS, POLICY, RECORD, SINGLE, experiment, model, participant, write_site

CLIENT = {"epsilon": 3.0, "delta": 1e-2, "reserve": 0.0}
IDEAL = {"secure_aggregation__engine": "ideal", "insecure_seeded_noise": True}
OPEN = {**POLICY, **SINGLE}


def clients_only(**changes: Any) -> Any:
    privacy = {"client": {**CLIENT, **changes.pop("client", {})}}
    return experiment(private=False, privacy=privacy, **changes)


def site(tmp_path: Any, made: Any, label: str = "north", **site_fields: Any) -> Participant:
    return participant(write_site(tmp_path / label, label, **{"policy": OPEN, **site_fields}), made)


def entries(client: Participant) -> list[tuple[Any, ...]]:
    with client.site.ledger() as ledger:
        return [(e.round, e.attempt, e.purpose, e.unit, e.event, e.delta) for e in ledger.entries]


def test_I15_each_noise_vector_has_a_key_of_its_own_from_the_operating_system(tmp_path: Any) -> None:
    made = clients_only()
    client = site(tmp_path, made)
    assert isinstance(client.run.keys, SystemKeys)
    encoded = client.encode(1, model(made), client.update("run-1", 1, model(made)))
    np.random.seed(0)
    drawn = {client.noised(encoded, 1, 1, 500.0).values.tobytes() for _ in range(20)}
    assert len(drawn) == 20
    noise = client.noised(encoded, 1, 1, 500.0).values - encoded.values
    assert 200 < noise.std() < 900 and client.noised(encoded, 1, 1, 0.0) is encoded


def test_seeded_noise_follows_site_round_and_attempt(tmp_path: Any) -> None:
    made = clients_only(**IDEAL)
    north, south = (site(tmp_path, made, label) for label in LABELS[:2])
    encoded = north.encode(1, model(made), north.update("run-1", 1, model(made)))

    def noise(client: Participant, *index: int) -> bytes:
        return (client.noised(encoded, *index, 500.0).values - encoded.values).tobytes()

    assert noise(north, 1, 1) == noise(north, 1, 1)
    assert len({noise(north, 1, 1), noise(north, 1, 2), noise(north, 2, 1), noise(south, 1, 1)}) == 4


def test_the_ideal_sum_gets_what_the_protocol_sends_in_a_first_attempt(tmp_path: Any) -> None:
    made = clients_only(**IDEAL)
    client, other = site(tmp_path / "a", made), site(tmp_path / "b", made)
    arrays = model(made)
    vector = plain.contribution(client, "run-1", 2, arrays)
    rules = Rules.of(made.secure_aggregation, client.run.plan.sum_noise_multiplier)
    share = rules.parameters(3).noise_share
    assert share == client.run.plan.client.share_std  # type: ignore[union-attr]
    sent = other.noised(other.encode(2, arrays, other.update("run-1", 2, arrays)), 2, 1, share)
    assert (vector.values == sent.values).all()


def test_I6_with_the_same_randomness_two_data_sets_move_a_vector_within_the_bound(tmp_path: Any) -> None:
    """Noise and rounding read no record: what another file changes is the bounded vector, and nothing else."""
    made = clients_only(**IDEAL, evaluation__metrics=True, client={"target_quantile": 0.5})
    arrays, c_int = model(made), 2**made.secure_aggregation.precision_bits
    header = "age,dose,ward,y,split\n"
    files = [
        None,
        header + "50,1,a,0,train\n",
        header + "1e30,-1e30,b,1,train\n0,1e30,a,0,test\n" * 50,
    ]
    vectors, noises = [], []
    for i, data in enumerate(files):
        client = site(tmp_path / str(i), made, data=data)
        encoded = client.encode(1, arrays, client.update("run-1", 1, arrays))
        vectors.append(encoded.values)
        noises.append(client.noised(encoded, 1, 1, 300.0).values - encoded.values)
    assert all(sum(int(x) ** 2 for x in vector) <= c_int**2 for vector in vectors)
    assert len({vector.tobytes() for vector in vectors}) == len(files)
    assert len({noise.tobytes() for noise in noises}) == 1


def test_every_sum_is_paid_for_and_a_finished_update_only_once(tmp_path: Any) -> None:
    made = experiment(privacy={"record": RECORD, "client": CLIENT})
    client = site(tmp_path, made, policy=POLICY)
    record, both = client.run.plan.round_event(), client.run.plan.client
    assert both is not None and client.pays_each_attempt
    client.debit("run-1", 1, 1)
    client.debit("run-1", 1, 2, again=True)
    client.debit("run-1", 2, 1)
    expected: list[Any] = []
    for number, attempt, purposes in ((1, 1, "both"), (1, 2, "sum"), (2, 1, "both")):
        if purposes == "both":
            expected.append((number, attempt, "training", "record", record, RECORD["delta"]))
        expected.append((number, attempt, SUM, "client", both.event(), CLIENT["delta"]))
    assert entries(client) == expected


def test_a_run_for_clients_debits_nothing_for_records(tmp_path: Any) -> None:
    client = site(tmp_path, clients_only(), policy=POLICY)
    client.debit("run-1", 1, 1)
    assert [(purpose, unit) for _, _, purpose, unit, _, _ in entries(client)] == [(SUM, "client")]


def test_sums_are_refused_when_all_that_the_plan_pays_for_are_made(tmp_path: Any) -> None:
    client = site(tmp_path, clients_only(), policy=POLICY)
    for number in range(1, 5):
        client.guard("run-1", number, model(client.run.experiment))
        client.debit("run-1", number, 1)
    for again in (False, True):
        with pytest.raises(PrivacyBudgetExceeded, match="all debits of this run for sum"):
            client.debit("run-1", 4, 2, again=again)
    assert len(entries(client)) == 4


def test_a_ceiling_holds_for_the_unit_that_is_promised(tmp_path: Any) -> None:
    """And for records too: what a run for clients costs them is more than what it costs clients."""
    first, second = clients_only(), clients_only(seed=4)
    promised = Run(first.to_toml()).plan.client
    assert promised is not None
    ceiling = {**POLICY, "epsilon_ceiling": promised.epsilon_replaced, "delta": CLIENT["delta"]}
    folder = write_site(tmp_path / "north", policy=ceiling)
    client = participant(folder, first)
    for number in range(1, 5):
        client.debit("run-1", number, 1)
    with pytest.raises(PrivacyBudgetExceeded, match=r"would exceed .* per record"):
        participant(folder, second).debit("run-2", 1, 1)


def test_what_a_run_for_clients_costs_records_counts_under_their_ceiling(tmp_path: Any) -> None:
    """The clients' own figure would allow it: what is used up are the records of an earlier run."""
    delta = CLIENT["delta"]
    policy = {**POLICY, "epsilon_ceiling": 8.0, "delta": delta}
    folder = write_site(tmp_path / "north", policy=policy)
    client = participant(folder, clients_only())
    promised = client.run.plan.client
    assert promised is not None
    with client.site.ledger() as ledger:
        ledger.debit("earlier", 1, 1, "training", "record", Event("gaussian", 0.5))
        assert ledger.spent(delta) < 8.0
        assert not ledger.would_exceed(promised.event(), 8.0, delta, unit="client")
    with pytest.raises(PrivacyBudgetExceeded, match="per record"):
        client.debit("run-1", 1, 1)
    assert len(entries(client)) == 1
    # An update that has paid for its records costs them nothing more under new noise.
    both = experiment(privacy={"record": RECORD, "client": {**CLIENT, "reserve": 1.0}})
    policy["epsilon_ceiling"] = CLIENT["epsilon"]
    other = participant(write_site(tmp_path / "south", "south", policy=policy), both)
    for number in range(1, 5):
        other.debit("run-1", number, 1)
        other.debit("run-1", number, 2, again=True)


def test_a_single_update_in_floats_is_refused_under_a_promise_for_clients(tmp_path: Any) -> None:
    made = clients_only(client={"noise": "central"}, secure_aggregation__enabled=False)
    client = site(tmp_path, made)
    with pytest.raises(Refused, match="encoded vectors"):
        plain.update(client, {"run": "r", "round": 1}, model(made))  # type: ignore[arg-type]
    assert (plain.contribution(client, "r", 1, model(made)).values != 0).any()
    assert not client.pays_each_attempt and len(entries(client)) == 1


@pytest.mark.parametrize(
    ("quantile", "clip", "reason"),
    [
        (0.0, "", ""),
        (0.5, "10.0", ""),
        (0.5, "0.001", ""),
        (0.0, "10.0", "clip"),
        (0.5, "", "clip"),
        (0.5, "60.0", "clip"),
        (0.5, "0.0009", "clip"),
        (0.5, "10", "clip"),
        (0.5, "nan", "clip"),
        (0.5, "inf", "clip"),
        (0.5, "-1.0", "clip"),
        (0.5, "0x1", "clip"),
    ],
)
def test_I16_the_clip_norm_in_force_is_one_that_experiment_and_site_allow(
    tmp_path: Any, quantile: float, clip: str, reason: str
) -> None:
    made = clients_only(client={"target_quantile": quantile, "clip_range": [1e-3, 100.0]})
    client = site(tmp_path, made, policy={**POLICY, "max_update_norm": 50.0})
    if not reason:
        client.clip_at(clip)
        assert client.clip == clip
        return
    with pytest.raises(Refused) as error:
        client.clip_at(clip)
    assert error.value.reason == reason and client.clip == ""


def test_I16_the_clip_norm_in_force_is_what_updates_are_cut_at(tmp_path: Any) -> None:
    made = clients_only(**IDEAL, client={"target_quantile": 0.5})
    client, arrays = site(tmp_path, made), model(made)
    update = client.update("run-1", 1, arrays)
    client.clip_at("0.01")
    assert client.encode(1, arrays, update).clipped
    client.clip_at("50.0")
    assert not client.encode(1, arrays, update).clipped


def test_a_later_attempt_pays_for_its_noise_alone() -> None:
    plan = Run(experiment(privacy={"record": RECORD, "client": CLIENT}).to_toml()).plan
    assert list(guard.priced(plan, 1, again=False)) == ["training", SUM]
    assert list(guard.priced(plan, 1, again=True)) == [SUM]
