"""What the seed has a say in: chances, shares, phases, stragglers, labels; and the list in which nothing is drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulations.faults import PHASES
from simulations.faulty_app import PLAYED, read_played
from simulations.stacked import train_ahead
from tests.unit.small_federation import Federation, same
from tests.unit.test_fault_lists import LABELS, LAST, SINGLE, entry, history, listed, play

CHANCES = {"since": 1, "share": 1.0, "phase": "keys", "kind": "drop", "chance": 0.25}


def test_drop_outs_by_chance_come_as_often_as_they_should_and_one_by_one(tmp_path: Path) -> None:
    faults = listed(tmp_path, entry(**CHANCES))
    struck = np.array([[label in faults.sites(1, n) for label in LABELS] for n in range(1, 1001)])
    assert abs(struck.mean() - 0.25) < 0.03
    correlations = np.corrcoef(struck.T)[np.triu_indices(6, 1)]
    assert np.abs(correlations).max() < 0.12


def test_drop_outs_that_belong_together_come_together(tmp_path: Path) -> None:
    faults = listed(
        tmp_path,
        entry(since=1, sites=["site-2", "site-5"], phase="keys", kind="drop", chance=0.25, together=True),
    )
    struck = [tuple(faults.sites(1, n)) for n in range(1, 1001)]
    assert set(struck) == {(), ("site-2", "site-5")}
    assert abs(sum(map(bool, struck)) / 1000 - 0.25) < 0.05


def test_a_drawn_phase_is_one_that_the_kind_can_have(tmp_path: Path) -> None:
    faults = listed(tmp_path, entry(**{**CHANCES, "phase": "drawn", "chance": 1.0}))
    phases = [strikes[0].phase for n in range(1, 101) for strikes in faults.strikes(n).values()]
    assert {phase: phases.count(phase) > 80 for phase in PHASES} == dict.fromkeys(PHASES, True)
    single = listed(tmp_path, entry(**{**CHANCES, "phase": "drawn"}), SINGLE)
    assert {s.phase for n in range(1, 50) for found in single.strikes(n).values() for s in found} == {
        "training"
    }


def test_since_and_until_are_the_first_and_the_last_round(tmp_path: Path) -> None:
    faults = listed(
        tmp_path, entry(since=3, until=5, site="site-1", phase="keys", kind="drop"), "training.rounds=9"
    )
    assert [n for n in range(10) if faults.sites(1, n)] == [3, 4, 5]


RANDOM = (  # of 6 sites at most 2 are lost, whatever is drawn
    entry(since=1, share=0.2, phase="drawn", kind="drop", chance=0.7)
    + entry(since=1, share=0.2, phase="vector", kind="late", chance=0.7, together=True)
    + entry(since=1, share=0.9, phase="keys", kind="straggle", seconds=0.5, spread=0.3)
)


def test_the_list_written_out_plays_what_this_list_plays(tmp_path: Path) -> None:
    drawn = listed(tmp_path, RANDOM)
    text = drawn.written_out(LAST)
    explicit = listed(tmp_path, text)
    assert not any(fault.is_drawn for fault in explicit.faults)
    for number in range(1, LAST + 1):
        for label in LABELS:
            for phase in PHASES:
                one, other = (faults.at(label, number, 1, phase) for faults in (drawn, explicit))
                assert (one is None) == (other is None)
                assert one is None or other is None or one[1].kind == other[1].kind
    models, rows, played = [], [], []
    for name, own in (("drawn", RANDOM), ("explicit", text)):
        fresh = Federation(
            tmp_path / f"{name}-sites", f"training.rounds={LAST}"
        )  # sites remember an earlier run
        model, found = play(fresh, tmp_path / name, own)
        models.append(model)
        rows.append(history(found))
        lines = read_played(tmp_path / name / PLAYED)
        played.append([{k: v for k, v in line.items() if k != "fault"} for line in lines])
    assert same(*models) and rows[0] == rows[1] and played[0] == played[1] != []


def test_a_straggler_is_too_late_beyond_the_deadline_and_only_then(tmp_path: Path) -> None:
    settings = ("training.rounds=2", SINGLE, "secure_aggregation.deadline_seconds=60.0")
    federation = Federation(tmp_path / "sites", *settings)
    straggle = {"phase": "training", "kind": "straggle", "spread": 0.0}
    text = entry(**straggle, round=1, site="site-1", seconds=59.0) + entry(
        **straggle, round=2, site="site-1", seconds=61.0
    )
    _, rows = play(federation, tmp_path / "x", text, SINGLE)
    assert ["site-1" in row["survivors"] for row in rows] == [True, False]
    happened = [line["happened"] for line in read_played(tmp_path / "x" / PLAYED)]
    assert happened == ["answered after 59 s", "answered after 61 s, too late"]


@pytest.mark.parametrize("executor", ["serial", "stacked"])
def test_flipped_labels_are_trained_on_and_the_same_ones_in_every_round(
    tmp_path: Path, executor: str
) -> None:
    settings = ("training.rounds=1", SINGLE, f'simulation.executor="{executor}"')
    federation = Federation(tmp_path / "sites", *settings)
    lie = {"since": 1, "site": "site-2", "phase": "training", "kind": "flip-labels"}
    how = {"ahead": train_ahead} if executor == "stacked" else {}
    honest = federation.run(tmp_path / "honest", **how)
    all_wrong, _ = play(federation, tmp_path / "all", entry(**lie), SINGLE, **how)
    half, _ = play(federation, tmp_path / "half", entry(**lie, rate=0.5), SINGLE, **how)
    again, _ = play(federation, tmp_path / "again", entry(**lie, rate=0.5), SINGLE, **how)
    assert same(half, again) and not same(half, honest)

    def apart(model: Any) -> float:
        return float(sum(((model[n] - honest[n]) ** 2).sum() for n in honest))

    assert apart(all_wrong) > apart(half) > 0
