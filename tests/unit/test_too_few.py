"""A sum that has too few sites waits for more of them, beyond its deadline."""

import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Message

from simulations.local_grid import LocalGrid
from strategies.secure_grid import SecureAggregationGrid
from tacit.errors import RunFailed
from tests.unit.small_federation import Federation, is_step, opened_sums

ONE_ROUND = "training.rounds=1"


@pytest.mark.parametrize("step", ["tacit0", "tacit1", "tacit2", "tacit3"])
def test_E5_a_federation_waits_beyond_the_deadline_for_as_many_as_a_sum_needs(
    tmp_path: Path, step: str
) -> None:
    """Without privacy what has left its site is not sent in another attempt: else the run would be over."""
    federation = Federation(tmp_path / "sites", ONE_ROUND, "secure_aggregation.deadline_seconds=0.2")
    slow = {federation.node(site) for site in (1, 2, 3)}  # more than D

    class Late(LocalGrid):
        until = 0.0

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            there = [self._answers[i] for i in message_ids if i in self._answers]
            late = [a for a in there if is_step(a, step) and a.metadata.src_node_id in slow]
            if late and not self.until:
                self.until = time.monotonic() + 2.0  # three attempts of 0.2 s would be over
            held = {a.metadata.reply_to_message_id for a in late} if time.monotonic() < self.until else set()
            return super().pull_messages(i for i in message_ids if i not in held)

    for waits in (False, True):
        with opened_sums() as opened, federation.rounds(tmp_path / str(waits), grid=Late) as rounds:
            grid = rounds.grid
            assert isinstance(grid, SecureAggregationGrid)
            grid._agreement = replace(grid._agreement, waits=waits)
            with nullcontext() if waits else pytest.raises(RunFailed):
                rounds.run(federation.initial())
        assert opened == ([(0, 1, 2, 3, 4, 5)] if waits else [])
    assert grid.facts.attempts == (3 if step == "tacit1" else 1), "with shares only the last attempt waits"
