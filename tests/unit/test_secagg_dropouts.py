"""Who vanishes when: the exact sum over those that sent their vectors, or none."""

import gc
import random
from itertools import combinations

import pytest

from tacit.secagg.messages import UnmaskRequest
from tacit.secagg.parameters import Rules
from tacit.secagg.server import AttemptFailed
from tests.unit.secagg_round import C_INT, RULES, STEPS, Round, failure_of, plain_sum, reason_of

SUBSETS = [set(lost) for size in range(6) for lost in combinations(range(5), size)]


def outcome(run, gone):
    """What the attempt gives: the sum and whose vectors should be in it, or None."""
    lost = set().union(*(gone.get(step, ()) for step in ("setup", "deal", "mask")))
    try:
        aggregate = run.run(gone)
    except AttemptFailed:
        return None
    assert run.server.survivors == tuple(i for i in run.clients if i not in lost)
    assert aggregate.num_clients == len(run.server.survivors)
    assert aggregate.values.tolist() == plain_sum(run.server.survivors, run.invitation.length)
    return aggregate


@pytest.mark.parametrize("step", STEPS)
def test_A2_every_subset_that_vanishes_in_a_step_leaves_the_exact_sum_or_none(step):
    """n = 5, c = 1, T = 4, D = 1."""
    assert RULES.parameters(5).threshold == 4
    for lost in SUBSETS:
        run = Round()
        aggregate = outcome(run, {step: lost})
        assert (aggregate is not None) == (len(lost) <= 1)
        assert aggregate is not None or run.server.phase != "done"


@pytest.mark.parametrize("step", STEPS)
def test_A2_a_lost_client_is_named(step):
    run, lost = Round(), [1, 3]
    without, guilty = failure_of(run.run, {step: lost})
    assert (without, guilty) == (lost, [])
    assert [member.index for member in run.server.missing] == lost


def test_A2_one_that_vanishes_in_each_of_two_steps_is_one_too_many():
    for first, second in combinations(STEPS, 2):
        # After the keys n is smaller, and with it T: only there one more may go.
        assert (outcome(Round(), {first: {0}, second: {4}}) is not None) == (first == "setup")


def history(rng, n, most):
    """Up to `most` clients, each vanishing in a random step."""
    gone = {step: set() for step in STEPS}
    for index in rng.sample(range(n), rng.randrange(most + 1)):
        gone[rng.choice(list(STEPS))].add(index)
    return gone


def check_histories(n, rules, most, histories, seed=0):
    rng = random.Random(seed)
    for number in range(histories):
        assert outcome(Round(n, rules, number), history(rng, n, most)) is not None


def test_A3_random_drop_outs_within_d_never_cost_the_sum():
    check_histories(12, Rules(1, 4, C_INT), 4, 30)
    check_histories(100, Rules(10, 20, C_INT), 20, 1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_A3_random_drop_outs_of_100_within_20_never_cost_the_sum():
    check_histories(100, Rules(10, 20, C_INT), 20, 1000, seed=1)


def test_A4_200_clients_lose_66():
    rules = Rules(66, 66, C_INT)
    assert rules.parameters(200).threshold == 134
    lost = random.Random(0).sample(range(200), 67)
    run = Round(200, rules, length=7).until("deal").step("mask", gone=lost)
    without, guilty = failure_of(run.server.confirm_requests)
    assert (without, guilty) == (sorted(lost), [])
    late = lost.pop()  # a message may also just be late
    run.gone.remove(late)
    run.collect("mask", run.answer("mask", late))
    aggregate = run.until("unmask").server.aggregate()
    assert aggregate.values.tolist() == plain_sum([i for i in range(200) if i not in lost], 7)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_A4_200_clients_lose_66_in_50_histories_and_not_one_more():
    rng = random.Random(1)
    for number in range(50):
        step, lost = rng.choice(["mask", "confirm", "unmask"]), rng.sample(range(200), 67)
        assert outcome(Round(200, Rules(66, 66, C_INT), number), {step: lost[1:]}) is not None
        assert outcome(Round(200, Rules(66, 66, C_INT), number), {step: lost}) is None


def test_A5_a_client_lost_before_the_keys_costs_nothing():
    rng = random.Random(5)
    for number in range(100):
        lost = rng.sample(range(6), rng.randrange(3))
        run = Round(6, Rules(1, 2, C_INT), number)
        assert outcome(run, {"setup": lost}) is not None
        assert run.server.cohort.parameters.n == 6 - len(lost)


# --- A6 -------------------------------------------------------------------------------------------------------


def reachable(root):
    """Every byte string that an object holds, however deep."""
    seen, todo, found = set(), [root], []
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, type | type(gc)):
            continue
        seen.add(id(item))
        if isinstance(item, bytes | bytearray):
            found.append(bytes(item))
        else:
            todo += gc.get_referents(item)
    return found


def shares_of(clients):
    """All shares that were dealt, by dealer: those of b_u, those of mask_sk_u."""
    rows = [client._state.shares for client in clients]
    return (
        {v: [bytes(row[v].own_share) for row in rows] for v in rows[0]},
        {v: [bytes(row[v].key_share) for row in rows] for v in rows[0]},
    )


def held(machine, shares):
    """Of how many of these shares the machine has the bytes."""
    blobs = reachable(machine)
    return sum(any(share in blob for blob in blobs) for share in shares)


def test_A6_one_confirmation_below_the_threshold_and_no_share_is_asked_for():
    run = Round().until("mask")
    own, key = shares_of(run.clients.values())
    run.step("confirm", gone=(3, 4))
    before = run.server.masked_total
    without, _ = failure_of(run.server.unmask_requests)
    assert without == [3, 4]
    assert run.server.phase == "confirmations"
    assert run.server._openings is None
    assert reason_of(run.server.aggregate) == "phase"
    assert run.answers.get("unmask") is None
    for dealer in range(5):
        assert held(run.server, own[dealer] + key[dealer]) == 0
    assert run.server.masked_total == before
    # The search does find what is there.
    assert held(run.clients[0], [own[2][0]]) == 1
    # Nobody gives a share for a set that fewer than T have signed.
    run.gone.clear()
    run.collect("confirm", run.answer("confirm", 3))
    request = run.ask("unmask")[0]
    decoded = UnmaskRequest.decode(request)
    few = UnmaskRequest(decoded.context, decoded.survivors, decoded.signatures[:-1]).encode()
    assert reason_of(run.clients[0].unmask, few) == "confirmations"


def test_A6_one_answer_below_the_threshold_and_nothing_is_opened():
    run = Round().until("confirm")
    own, key = shares_of(run.clients.values())
    seeds = [bytes(client._state.own_seed) for client in run.clients.values()]
    run.step("unmask", gone=(3, 4))
    before = run.server.masked_total
    for _ in range(2):  # trying again changes nothing
        assert failure_of(run.server.aggregate) == ([3, 4], [])
        assert run.server.masked_total == before
    for dealer in range(5):
        assert held(run.server, own[dealer]) == 3  # of T = 4
        assert held(run.server, key[dealer]) == 0
    blobs = reachable(run.server)
    assert not any(seed in blob for seed in seeds for blob in blobs)
    run.collect("unmask", run.answer("unmask", 3))
    assert run.server.aggregate().values.tolist() == plain_sum(range(5))
    assert run.server._openings is None


def test_A6_a_client_that_did_not_mask_has_only_its_key_opened_and_the_others_only_their_seeds():
    run = Round().until("deal").step("mask", gone=(2,)).step("confirm")
    own, key = shares_of(run.clients[i] for i in (0, 1, 3, 4))
    run.step("unmask")
    for dealer in range(5):
        opened, closed = (key, own) if dealer == 2 else (own, key)
        assert held(run.server, opened[dealer]) == 4
        assert held(run.server, closed[dealer]) == 0
    assert run.server.aggregate().values.tolist() == plain_sum([0, 1, 3, 4])
