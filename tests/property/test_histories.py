"""E8: histories of a federation, with kills, lost acknowledgements, repeats, disorder and partitions.

Twenty kinds of moves in any order. Hypothesis shrinks a history that breaks a promise to the few moves that matter.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

from history_promises import Promises
from history_world import DEADLINE, FIRST_NODE, NUM_SITES, PRIVATE, Prepared, World
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

SITES, CALLS = st.integers(0, NUM_SITES - 1), st.integers(1, 25)


@lru_cache
def prepared(*overrides: str) -> Prepared:
    return Prepared(Path(mkdtemp()), *overrides)


class Histories(RuleBasedStateMachine):
    """A federation at the mercy of its moves."""

    num_histories = num_moves = num_rounds = num_kills = 0

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
            Histories.num_rounds += rounds.read_bytes().count(b"\n") if rounds.exists() else 0
            Histories.num_kills += self.server.num_kills + sum(m.num_kills for m in self.members)
            Histories.num_histories += 1
            self.world.__exit__()

    @invariant()
    def promises_hold(self) -> None:
        Histories.num_moves += 1
        if hasattr(self, "promises"):
            self.promises.check()

    # -- the run goes on

    @rule(often=st.integers(1, 12))
    def everybody_works(self, often: int) -> None:
        for _ in range(often):
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

    @rule(site=SITES)
    def site_killed(self, site: int) -> None:
        self.members[site].die()

    @rule(site=SITES, calls=CALLS)
    def site_killed_at_a_call(self, site: int, calls: int) -> None:
        self.members[site].fuse.left = calls

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


def again(answer, message):
    """An answer as one to another message."""
    from copy import deepcopy

    copy = deepcopy(answer)
    copy.metadata.__dict__["_reply_to_message_id"] = message.metadata.message_id
    return copy


SHORT = settings(max_examples=12, stateful_step_count=40, deadline=None)


def test_E8_no_history_of_kills_and_losses_breaks_a_promise() -> None:
    run_state_machine_as_test(Histories, settings=SHORT)
    print(Histories.num_histories, Histories.num_moves, Histories.num_rounds, Histories.num_kills)
    assert Histories.num_rounds > 0
