"""A member that deals shares of nothing, through the real apps: the attempt fails, and it is asked no more."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

from flwr.app import Message

from tacit.secagg import sharing
from tacit.secagg.shamir import PRIME, SHARE_BYTES
from tests.unit.small_federation import PRIVATE, Federation, Misbehaving, is_step, opened_sums


def test_C15_who_is_proven_to_have_cheated_is_asked_no_more(tmp_path: Path) -> None:
    split = sharing.split

    def falsely(*arguments: Any) -> list[bytes]:
        first, *rest = split(*arguments)
        return [((int.from_bytes(first) + 1) % PRIME).to_bytes(SHARE_BYTES), *rest]

    def cheat(message: Message, real: Any, site: int) -> Message | None:
        if site != 2 or not is_step(message, "tacit1"):
            return None
        with patch.object(sharing, "split", falsely):
            answer: Message = real()
            return answer

    app = Misbehaving(cheat)
    with opened_sums() as opened:
        Federation(tmp_path / "sites", "training.rounds=2", PRIVATE).run(tmp_path / "run", app=app)
    assert opened == [(0, 1, 3, 4, 5)] * 2
    asked = [kind for site, kind in app.asked if site == 2 and kind.startswith("train")]
    assert asked == [f"train.tacit{step}" for step in range(5)]  # one attempt, in all of two rounds
