"""What is kept of an attempt opens its sum again, so it is kept no longer than it is needed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from server import app
from server.attempts import AttemptFile
from strategies.attempts import Begun
from strategies.rounds import Progress
from tacit.errors import ConfigError, RunFailed
from tests.unit.small_federation import Federation

RECORD = {"round": 1, "refusals": {}, "survivors": ["a"], "epsilon": None, "at_once": 1}


def play(folder: Path, monkeypatch: pytest.MonkeyPatch, round_one: Any) -> None:
    """A `ServerApp` from its start to its end, whose rounds are `round_one` alone."""
    federation = Federation(folder)

    class Rounds:
        def __init__(self, *arguments: Any) -> None:
            self.store = arguments[5]

        def run(self, arrays: Any) -> Progress:
            AttemptFile(folder / "run" / "attempt").begin(Begun(b"m0", b"s" * 32, (0,), {}))
            round_one(self.store)
            return Progress(1, {"w": np.ones(1, dtype=np.float32)})

        def stops(self, progress: Progress) -> bool:
            return False

    monkeypatch.setattr(app, "Rounds", Rounds)
    monkeypatch.setattr(app, "nodes_of", lambda grid, experiment: {})
    monkeypatch.setattr(app, "wrap", lambda grid, *rest: grid)
    monkeypatch.setenv("TACIT_STATE", str(folder / "run"))
    monkeypatch.delenv("TACIT_FEDERATION", raising=False)
    context = SimpleNamespace(run_config={"experiment": federation.experiment.to_toml()})
    app.main(None, context)  # type: ignore[arg-type]


def is_kept(folder: Path) -> bool:
    return AttemptFile(folder / "run" / "attempt").kept() is not None


def test_an_attempt_is_let_go_of_when_its_round_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def one(store: Any) -> None:
        store.save(Progress(0, {"w": np.zeros(1, dtype=np.float32)}), None)
        seen.append(is_kept(tmp_path))
        store.save(Progress(1, {"w": np.ones(1, dtype=np.float32)}), RECORD)
        seen.append(is_kept(tmp_path))

    play(tmp_path, monkeypatch, one)
    assert seen == [True, False]


@pytest.mark.parametrize(("error", "kept"), [(RunFailed("spoilt"), False), (ConfigError("no roster"), True)])
def test_a_sum_that_is_spoilt_is_not_opened_again_by_who_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kept: bool
) -> None:
    def fails(store: Any) -> None:
        raise error

    with pytest.raises(type(error)):
        play(tmp_path, monkeypatch, fails)
    assert is_kept(tmp_path) is kept
    assert (tmp_path / "run" / "failure.json").exists()
