"""Members that deal, complain or answer falsely: who is named, and that the sum is exact or there is none."""

import random
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest

from tacit.secagg import sharing
from tacit.secagg.messages import ROW_BYTES, Complaint, DealAnswer, MaskAnswer, UnmaskAnswer
from tacit.secagg.parameters import Rules
from tacit.secagg.shamir import PRIME
from tacit.secagg.sharing import OPENING_BYTES, SHARE_BYTES
from tacit.update import EncodedUpdate
from tests.unit.secagg_round import C_INT, RULES, Round, failure_of, plain_sum, reason_of

THREE = Rules(3, 3, C_INT)  # of 10: T = 7


def indices(members):
    return [member.index for member in members]


# --- shares that are not the ones dealt ----------------------------------------------------------------------


def wrong_openings(run, index, places, at=1):
    """An answer of M4 whose openings at these places have one bit changed, under its sender's own signature."""

    def lie(answer):
        message = UnmaskAnswer.decode(answer)
        changed = bytearray(message.openings)
        for place in places:
            changed[place * OPENING_BYTES + at] ^= 1
        return replace(message, openings=bytes(changed)).signed(run.identity(index)).encode()

    return lie


@pytest.mark.parametrize("liars", [(0,), (6,), (0, 3), (0, 1, 2), (4, 8, 9)])
def test_C1_bad_shares_are_erased_by_commitment_and_their_senders_named(liars):
    run = Round(10, THREE).until("confirm")
    places = [0, 3, 4, 9]
    run.step("unmask", lies={i: wrong_openings(run, i, places) for i in liars})
    assert run.server.aggregate().values.tolist() == plain_sum(range(10))
    assert indices(run.server.blamed) == list(liars)  # each set has one whose share is among the first T


@pytest.mark.parametrize("at", [1, SHARE_BYTES, SHARE_BYTES + 32], ids=["share", "salt", "other"])
@pytest.mark.parametrize("place", [1, 2], ids=["seed", "key"])
def test_C1_every_part_of_an_opening_counts(at, place):
    """Where the secret is right all the same, nobody looks at salt and hash: nothing depends on them."""
    run = Round(10, THREE).until("deal").step("mask", gone=(2,)).step("confirm")
    run.step("unmask", gone=(9, 8), lies={0: wrong_openings(run, 0, [place], at)})
    left = [0, 1, 3, 4, 5, 6, 7]  # exactly T answer
    if at >= SHARE_BYTES:
        assert run.server.aggregate().values.tolist() == plain_sum([*left, 8, 9])
        assert run.server.blamed == ()
        return
    assert failure_of(run.server.aggregate) == ([0, 8, 9], [])
    assert indices(run.server.blamed) == [0]


def test_C1_a_share_that_is_none_is_erased_too():
    run = Round(10, THREE).until("confirm")

    def lie(answer):
        message = UnmaskAnswer.decode(answer)
        openings = b"\xff" * SHARE_BYTES + message.openings[SHARE_BYTES:]
        return replace(message, openings=openings).signed(run.identity(0)).encode()

    run.step("unmask", lies={0: lie})
    assert run.server.aggregate().values.tolist() == plain_sum(range(10))
    assert indices(run.server.blamed) == [0]


def test_C2_more_bad_shares_than_can_be_spared_name_their_senders_and_the_next_attempt_succeeds():
    run = Round(10, THREE).until("confirm")
    liars = (1, 4, 5, 8)
    run.step("unmask", lies={i: wrong_openings(run, i, range(10)) for i in liars})
    assert failure_of(run.server.aggregate) == (list(liars), [])
    rest = [i for i in range(10) if i not in liars]
    again = Round(rules=THREE, federation=run.federation, members=rest, attempt=2)
    assert again.run().values.tolist() == plain_sum(rest)


# --- dealers ---------------------------------------------------------------------------------------------------


def deal_falsely(run, dealer, change, calls=(0, 1)):
    """The dealer's client deals, but `change` has its way with the secret and the shares of the seed (call 0) or
    of the mask key (call 1). All rows open, and each share is the one that is committed to."""
    split, counter = sharing.split, iter(range(2))

    def falsely(secret, *more):
        return change(split, secret, *more) if next(counter) in calls else split(secret, *more)

    with patch.object(sharing, "split", falsely):
        return run.answer("deal", dealer)


def off_the_polynomial(split, *arguments):
    shares = split(*arguments)
    shares[1] = ((int.from_bytes(shares[1]) + 1) % PRIME).to_bytes(SHARE_BYTES)
    return shares


def of_another_secret(split, secret, *more):
    return split(bytes(32 - len(secret[1:])) + secret[1:], *more)


def too_large(split, secret, points, threshold, random_bytes):
    """On a polynomial, whose value at 0 is a number of 257 bits."""
    coefficients = [int.from_bytes(random_bytes(32)) for _ in range(threshold - 1)]
    value = 2**256 + 5
    return [
        ((value + sum(a * x ** (i + 1) for i, a in enumerate(coefficients))) % PRIME).to_bytes(SHARE_BYTES)
        for x in points
    ]


FALSELY = {"off": off_the_polynomial, "other": of_another_secret, "large": too_large}


@pytest.mark.parametrize("how", FALSELY)
@pytest.mark.parametrize("secret", ["seed", "key"])
def test_C15_an_inconsistent_dealer_is_proven_guilty_by_its_own_commitments(how, secret):
    run = Round().until("setup")
    run.ask("deal")
    for i in run.clients:
        call = ("seed", "key").index(secret)
        answer = deal_falsely(run, 2, FALSELY[how], (call,)) if i == 2 else run.answer("deal", i)
        run.collect("deal", answer)
    run.step("mask", gone=() if secret == "seed" else (2,))
    assert run.server.complaints == {}  # no recipient can know
    run.step("confirm").step("unmask")
    assert failure_of(run.server.aggregate) == ([2], [2])
    assert run.server.blamed == ()
    again = Round(federation=run.federation, members=[0, 1, 3, 4], attempt=2)
    assert again.run().values.tolist() == plain_sum([0, 1, 3, 4])


def test_C15_a_secret_that_is_not_opened_accuses_nobody():
    run = Round().until("setup")
    run.ask("deal")
    for i in run.clients:
        run.collect(
            "deal", deal_falsely(run, 2, of_another_secret, (1,)) if i == 2 else run.answer("deal", i)
        )
    assert run.until("unmask").server.aggregate().values.tolist() == plain_sum(range(5))
    assert run.server.blamed == ()


def test_C15_no_set_of_liars_makes_an_honest_dealer_guilty():
    """Whatever c of 10 members answer, only their own shares are erased."""
    rng = random.Random(0)
    for number in range(8):
        liars = rng.sample(range(10), 3)
        run = Round(10, THREE, number).until("deal").step("mask", gone=(9,)).step("confirm")
        run.ask("unmask")
        for i in range(9):
            answer = run.answer("unmask", i)
            if i in liars:
                message = UnmaskAnswer.decode(answer)
                openings = rng.choice(
                    [
                        rng.randbytes(len(message.openings)),
                        message.openings[::-1],
                        bytes(len(message.openings)),
                    ]
                )
                answer = replace(message, openings=openings).signed(run.identity(i)).encode()
            run.collect("unmask", answer)
        liars = [i for i in liars if i != 9]
        if len(liars) <= 2:
            assert run.server.aggregate().values.tolist() == plain_sum(range(9))
        else:
            assert failure_of(run.server.aggregate) == (sorted(liars), [])
        assert set(indices(run.server.blamed)) <= set(liars)


# --- complaints ------------------------------------------------------------------------------------------------


def garbled(run, dealer, recipients, at):
    """The dealer's rows for these recipients have one byte changed."""

    def lie(answer):
        message = DealAnswer.decode(answer)
        rows = bytearray(message.rows)
        for place in recipients:
            rows[place * ROW_BYTES + at] ^= 1
        return replace(message, rows=bytes(rows)).signed(run.identity(dealer)).encode()

    return {dealer: lie}


def not_a_share(split, *arguments):
    shares = split(*arguments)
    return [b"\xff" * SHARE_BYTES, *shares[1:]]


@pytest.mark.parametrize("at", [0, 113, 114, 145], ids=["sealed", "its tag", "commitment", "its end"])
def test_C16_a_true_complaint_costs_one_vector(at):
    run = Round().until("setup")
    run.step("deal", lies=garbled(run, 3, [1], at)).step("mask")
    assert run.server.complaints == {1: 3}
    assert run.clients[1].phase == "complained"
    assert run.clients[1]._state.own_seed == b""
    assert run.step("confirm").step("unmask").server.aggregate().values.tolist() == plain_sum([0, 2, 3, 4])


@pytest.mark.parametrize("call", [0, 1])
def test_C16_a_row_that_holds_no_share_is_complained_about(call):
    run = Round().until("setup")
    run.ask("deal")
    for i in run.clients:
        run.collect("deal", deal_falsely(run, 3, not_a_share, (call,)) if i == 3 else run.answer("deal", i))
    assert run.step("mask").server.complaints == {0: 3}


def test_C16_rows_in_another_order_open_for_nobody():
    run = Round(8, Rules(2, 1, C_INT)).until("setup")

    def swap(answer):
        message = DealAnswer.decode(answer)
        rows = [message.row(i) for i in range(8)]
        rows[0], rows[1], rows[2] = rows[2], rows[0], rows[1]
        return replace(message, rows=b"".join(rows)).signed(run.identity(7)).encode()

    run.step("deal", lies={7: swap}).step("mask")
    assert run.server.complaints == {0: 7, 1: 7, 2: 7}


def test_C16_a_dealer_named_by_more_than_c_is_left_out_alone():
    run = Round(8, Rules(2, 1, C_INT)).until("setup")
    run.step("deal", lies=garbled(run, 5, [0, 1, 2], 0)).step("mask")
    assert failure_of(run.server.confirm_requests) == ([5], [])
    rest = [0, 1, 2, 3, 4, 6, 7]
    again = Round(rules=run.invitation.rules, federation=run.federation, members=rest, attempt=2)
    assert again.run().values.tolist() == plain_sum(rest)


def complaint(run, sender, dealer):
    return Complaint(run.server._ctx2, sender, dealer).signed(run.identity(sender)).encode(), b""


def test_C16_a_false_complaint_costs_its_sender_s_vector_and_nothing_else():
    run = Round().until("deal")
    run.step("mask", lies={1: lambda _: complaint(run, 1, 3)})
    assert run.server.complaints == {1: 3}
    aggregate = run.step("confirm", gone=(1,)).step("unmask").server.aggregate()
    assert aggregate.values.tolist() == plain_sum([0, 2, 3, 4])


def test_C16_false_complaints_leave_out_at_most_c_pairs():
    run = Round(9, Rules(2, 1, C_INT)).until("deal")
    run.step("mask", lies={1: lambda _: complaint(run, 1, 3), 2: lambda _: complaint(run, 2, 4)})
    assert failure_of(run.server.confirm_requests) == ([1, 2, 3, 4], [])
    rest = [0, 5, 6, 7, 8]
    again = Round(rules=run.invitation.rules, federation=run.federation, members=rest, attempt=2)
    assert again.run().values.tolist() == plain_sum(rest)


def test_C16_c_liars_with_one_victim_are_left_out_with_it():
    run = Round(9, Rules(2, 1, C_INT)).until("deal")
    run.step("mask", lies={i: (lambda _, i=i: complaint(run, i, 4)) for i in (1, 2)})
    assert failure_of(run.server.confirm_requests) == ([1, 2, 4], [])


@pytest.mark.parametrize(("dealer", "reason"), [(4, "unknown-member"), (9, "unknown-member")])
def test_C16_a_complaint_about_whoever_has_dealt_no_row_is_refused(dealer, reason):
    run = Round().until("setup").step("deal", gone=(4,))
    run.ask("mask")
    assert reason_of(run.server.collect_masked, *complaint(run, 1, dealer)) == reason
    assert run.server.complaints == {}
    run.server.collect_masked(*complaint(run, 1, 1))  # its own row comes by way of the server too
    assert run.server.complaints == {1: 1}


def test_C16_who_has_complained_sends_no_vector_afterwards_nor_the_other_way_round():
    run = Round().until("deal")
    run.ask("mask")
    message, vector = run.answer("mask", 1)
    run.server.collect_masked(*complaint(run, 1, 3))
    assert reason_of(run.server.collect_masked, message, vector) == "duplicate"
    run.server.collect_masked(*run.answer("mask", 2))
    assert reason_of(run.server.collect_masked, *complaint(run, 2, 3)) == "duplicate"
    assert run.server.complaints == {1: 3}
    assert MaskAnswer.decode(message).sender == 1


# --- C10 -------------------------------------------------------------------------------------------------------


def test_C10_c_members_without_noise_and_d_lost_ones_leave_as_much_noise_as_is_claimed():
    """Nobody sees that noise is missing; so the share of each is sized as if those c added none."""
    rules, n, d = Rules(2, 2, 1024, noise_multiplier=1.0), 10, 20_000
    run = Round(n, rules, length=d)
    rng = np.random.default_rng(0)
    for i in run.clients:
        share = rules.parameters(n).noise_share if i >= 2 else 0.0  # 0 and 1 cheat, 8 and 9 vanish
        run.encoded[i] = EncodedUpdate(np.rint(rng.normal(0, share, d)).astype(np.int64), False)
    variance = run.run({"mask": (8, 9)}).values.astype(float).var()
    sigma = rules.noise_multiplier * rules.c_int
    assert variance >= sigma**2 * (1 - 5 * np.sqrt(2 / d))


def test_the_rules_of_these_tests_are_those_that_are_tight():
    assert THREE.parameters(10).threshold == 7
    assert THREE.parameters(10).max_dropouts == 3
    assert RULES.parameters(5).threshold == 4
