"""C11: one of 20 sites poisons what it sends, and the global model of the whole harness is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.run import simulate
from tacit.config import load
from tacit.report.record import RunRecord
from tests.architecture.sources import ROOT

SCENARIO = ROOT / "simulations" / "scenarios" / "breast_cancer.toml"
BOUND = 0.05  # stated in docs/faults.md
TIGHT = "secure_aggregation.update_clip=1.0"  # about twice the norm of an honest update
SETTINGS = (
    "partition.kind=iid",
    "partition.num_clients=20",
    "privacy=none",
    "simulation.baselines=false",
    "training.rounds=8",
    "strategy.weights=equal",
)
IDEAL = ("secure_aggregation.engine=ideal",)
FAULT = '[[fault]]\nsince = 1\nsite = "site-07"\nphase = "{phase}"\nkind = "{kind}"\n{extra}\n'


def run(folder: Path, *settings: str, fault: str = "") -> RunRecord:
    folder.mkdir()
    faults = ()
    if fault:
        (folder / "list.toml").write_text(fault)
        faults = (f'simulation.faults="{folder / "list.toml"}"',)
    experiment = load(SCENARIO, [*SETTINGS, *settings, *faults])
    return simulate(experiment, folder / "run")


def accuracy(record: RunRecord) -> float:
    value = record.final.metrics["accuracy"]
    assert value is not None
    return value


def boosted(phase: str, factor: float = -100.0) -> str:
    return FAULT.format(phase=phase, kind="boost", extra=f"factor = {factor}")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Accuracy without any poison."""
    reached = accuracy(run(tmp_path_factory.mktemp("poison") / "honest", *IDEAL, TIGHT))
    assert reached > 0.9
    return reached


def test_C11_one_of_20_sites_that_boosts_its_update_moves_accuracy_by_no_more_than_the_stated_bound(
    honest: float, tmp_path: Path
) -> None:
    poisoned = run(tmp_path / "poisoned", *IDEAL, TIGHT, fault=boosted("training"))
    assert {fault.happened for fault in poisoned.faults} == {"lied; in the sum"} and len(poisoned.faults) == 8
    assert honest - accuracy(poisoned) <= BOUND


def test_C11_it_is_the_clip_that_holds_the_bound(honest: float, tmp_path: Path) -> None:
    """With the largest clip norm that a site's policy allows the same lie ruins the model: the bound can be broken."""
    wide = "secure_aggregation.update_clip=100.0"
    assert honest - accuracy(run(tmp_path / "poisoned", *IDEAL, wide, fault=boosted("training"))) > 4 * BOUND


def test_labels_that_one_of_20_sites_has_all_wrong_cost_no_more_either(honest: float, tmp_path: Path) -> None:
    lie = FAULT.format(phase="training", kind="flip-labels", extra="")
    poisoned = run(tmp_path / "poisoned", *IDEAL, TIGHT, fault=lie)
    assert {fault.happened for fault in poisoned.faults} == {"lied; in the sum"}
    assert honest - accuracy(poisoned) <= BOUND


@pytest.mark.slow
def test_C11_the_same_through_the_protocol(honest: float, tmp_path: Path) -> None:
    poisoned = run(tmp_path / "poisoned", TIGHT, "secure_aggregation.max_dropouts=2", fault=boosted("keys"))
    assert all(len(item.survivors) == 20 and not item.blamed for item in poisoned.rounds)
    assert honest - accuracy(poisoned) <= BOUND
