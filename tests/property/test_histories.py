"""E8: histories of a federation, with kills, lost acknowledgements, repeats, disorder and partitions.

Twenty kinds of moves in any order. Hypothesis shrinks a history that breaks a promise to the few moves that matter.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import ClassVar

import pytest
from flwr.app import Message
from history_link import NUM_SITES
from history_promises import Promises
from history_world import DEADLINE, FIRST_NODE, PRIVATE, Prepared, World
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

# A round takes about fifty calls that change a file, on either side.
SITES, CALLS = st.integers(0, NUM_SITES - 1), st.integers(1, 60)


@lru_cache
def prepared(*overrides: str) -> Prepared:
    return Prepared(Path(mkdtemp()), *overrides)


class Histories(RuleBasedStateMachine):
    """A federation at the mercy of its moves."""

    counts: ClassVar[Counter[str]] = Counter()  # of all that were played

    @initialize(private=st.booleans())
    def begin(self, private: bool) -> None:
        self.world = World(prepared(*(PRIVATE if private else ())))
        self.world.__enter__()
        self.promises = Promises(self.world)
        self.link, self.server, self.members = self.world.link, self.world.server, self.world.members
        self.server.start()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.promises.check()
            self.promises.check_debits()
            self.promises.check_models()
        finally:
            rounds = self.world.state / "rounds.jsonl"
            self.counts["histories"] += 1
            self.counts["rounds"] += rounds.read_bytes().count(b"\n") if rounds.exists() else 0
            self.counts["kills"] += self.server.num_kills + sum(m.num_kills for m in self.members)
            self.world.__exit__()

    @invariant()
    def promises_hold(self) -> None:
        self.counts["moves"] += 1
        if hasattr(self, "promises"):
            self.promises.check()

    # -- the run goes on

    @rule(often=st.integers(1, 12))
    def everybody_works(self, often: int) -> None:
        for _ in range(often):
            self.server_starts()  # as the supervisor does
            for member in self.members:
                member.work()
            self.server.work()

    @rule(site=SITES)
    def site_works(self, site: int) -> None:
        self.members[site].work()

    @rule()
    def server_works(self) -> None:
        self.server.work()

    @rule()
    def server_starts(self) -> None:
        if not self.server.lives:
            self.server.start()

    @rule()
    def time_passes(self) -> None:
        self.world.clock.now += DEADLINE / 4
        self.server.work()

    @rule()
    def deadline_passes(self) -> None:
        self.world.clock.now += DEADLINE
        self.server.work()

    # -- kills

    @rule()
    def server_killed(self) -> None:
        self.server.die()

    @rule(calls=CALLS)
    def server_killed_at_a_call(self, calls: int) -> None:
        self.server.fuse.left = calls
        self.everybody_works(6)

    @rule(site=SITES)
    def site_killed(self, site: int) -> None:
        self.members[site].die()

    @rule(site=SITES, calls=CALLS)
    def site_killed_at_a_call(self, site: int, calls: int) -> None:
        self.members[site].fuse.left = calls
        self.everybody_works(6)

    @rule()
    def everybody_killed(self) -> None:
        self.server.die()
        for member in self.members:
            member.die()

    @rule()
    def superlink_forgets(self) -> None:
        self.link.forget()

    # -- the network

    @rule(site=SITES)
    def answer_lost(self, site: int) -> None:
        self.members[site].wire.fate = "lost"
        self.members[site].work()

    @rule(site=SITES)
    def acknowledgement_lost(self, site: int) -> None:
        self.members[site].wire.fate = "not acknowledged"
        self.members[site].work()

    @rule(site=SITES)
    def message_lost(self, site: int) -> None:
        if waiting := self.link.waiting[FIRST_NODE + site]:
            waiting.pop(0)

    @rule(site=SITES)
    def message_repeated(self, site: int) -> None:
        if sent := self.link.sent[FIRST_NODE + site]:
            self.link.waiting[FIRST_NODE + site] += [sent[-1]] * 2
            self.members[site].work()

    @rule(site=SITES, place=st.integers(0, 1000))
    def old_message_comes_again(self, site: int, place: int) -> None:
        if sent := self.link.sent[FIRST_NODE + site]:
            self.link.waiting[FIRST_NODE + site].insert(0, sent[place % len(sent)])
            self.members[site].work()

    @rule(site=SITES)
    def messages_out_of_order(self, site: int) -> None:
        self.link.waiting[FIRST_NODE + site].reverse()

    @rule(place=st.integers(0, 1000))
    def old_answer_comes_for_a_new_question(self, place: int) -> None:
        open_now = [m for sent in self.link.sent.values() for m in sent[-1:]]
        if self.link.answered and open_now:
            answer = self.link.answered[-1 - place % len(self.link.answered)]
            node = answer.metadata.src_node_id
            for message in open_now:
                if message.metadata.dst_node_id == node and message.metadata.run_id == self.link.run:
                    self.link.answers.setdefault(message.metadata.message_id, again(answer, message))

    @rule()
    def answers_out_of_order(self) -> None:
        self.link.reverses = not self.link.reverses

    @rule(site=SITES)
    def site_cut_off(self, site: int) -> None:
        self.link.cut.add(FIRST_NODE + site)

    @rule()
    def all_are_back(self) -> None:
        self.link.cut.clear()


def again(answer: Message, message: Message) -> Message:
    """An answer as one to another message."""
    copy = deepcopy(answer)
    copy.metadata.__dict__["_reply_to_message_id"] = message.metadata.message_id
    return copy


def play(number: int, steps: int, histories: int, *, shrink: bool = True) -> None:
    """So many histories of so many moves; which they are follows from `number`. To shrink one takes minutes."""
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    batch = seed(number)(type("Batch", (Histories,), {}))
    run_state_machine_as_test(
        batch,
        settings=settings(
            max_examples=histories,
            phases=phases,
            stateful_step_count=steps,
            derandomize=False,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_E8_no_history_of_kills_and_losses_breaks_a_promise() -> None:
    before = Counter(Histories.counts)
    play(8, steps=30, histories=8, shrink=False)
    seen = Histories.counts - before
    assert seen["histories"] >= 8 and seen["rounds"] >= 8 and seen["kills"] >= 16, seen


def sweep(victim: int, calls: range) -> None:
    """A round for each of these calls: it kills the victim (a site, or -1: the server), and the round is complete."""
    with World(prepared(*PRIVATE, f"training.rounds={len(calls) + 2}")) as world:
        promises = Promises(world)
        killed = world.server if victim < 0 else world.members[victim]
        for number, call in enumerate(calls, start=1):
            killed.fuse.left = call
            for _ in range(60):
                if not world.server.lives:
                    world.server.start()
                for member in world.members:
                    member.work()
                world.server.work()
                promises.check()
                if num_rounds(world) >= number:
                    break
                world.clock.now += DEADLINE / 40  # a message that was taken and lost is sent again
            assert num_rounds(world) >= number, f"lost with call {call}"
        assert killed.num_kills > len(calls) / 2
        promises.check_debits()
        promises.check_models()


def num_rounds(world: World) -> int:
    path = world.state / "rounds.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_E8_a_site_killed_at_any_call_of_a_round_has_paid_for_what_left_it() -> None:
    sweep(1, range(1, 61))


@pytest.mark.slow
def test_E8_a_server_killed_at_any_call_of_a_round_opens_its_sum_once() -> None:
    sweep(-1, range(1, 61))


LONG = 10_000  # histories
MINUTES = float(os.environ.get("TACIT_SOAK_MINUTES", "2"))
BATCHES = ((40, 50), (40, 50), (100, 20), (400, 5))  # moves, histories


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_E8_no_history_of_up_to_400_moves_breaks_a_promise() -> None:
    """Ten thousand of them, or as many as there is time for."""
    end, number = time.monotonic() + 60 * MINUTES, random.SystemRandom().randrange(2**32)
    before = Counter(Histories.counts)
    for i in itertools.count():
        if time.monotonic() >= end or (Histories.counts - before)["histories"] >= LONG:
            break
        play(number + i, *BATCHES[i % len(BATCHES)])
    print(", ".join(f"{count} {what}" for what, count in (Histories.counts - before).items()))
