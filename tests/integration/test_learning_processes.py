"""In a federation of real processes and over the real SuperLink: what a simulation makes, and kills lose none of it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import local_model, same_model
from secured import Federation, wait_for

from server.runs import Run
from server.state import read_rounds

BUFFERED = (
    "strategy.name=fedbuff", "strategy.cohorts_at_once=2", "training.rounds=8",
    "secure_aggregation.deadline_seconds=60",
)  # fmt: skip
FTRL = (
    "strategy.name=dp_ftrl", "strategy.bands=2", "training.rounds=6", "insecure_seeded_noise=true",
    'privacy.client={epsilon=20.0, delta=0.05, noise="central"}', "secure_aggregation.precision_bits=16",
)  # fmt: skip
TELLING = (
    "training.rounds=3", "evaluation.metrics=true", "evaluation.curves=true", "evaluation.explain=saliency",
    "privacy.record={epsilon=20.0, delta=1e-5, metrics_share=0.3}", "insecure_seeded_noise=true",
    "task.model.name=mlp", 'evaluation.concepts={large={column="worst radius", above=20.0}}',
)  # fmt: skip
SITES = "partition.num_clients=6"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Six sites, of which three make a sum."""
    federation = Federation(tmp_path_factory.mktemp("secured"), SITES, "training.clients_per_round=3")
    federation.start_all()
    yield federation
    assert set(federation.stop().values()) == {0}, federation.said()


def check_whole(federation: Federation, run: Run, folder: Path, *settings: str) -> None:
    """Every round once, and the model and the sums of a simulation."""
    federation.wait_end(run)
    assert run.status.state == "finished", federation.said()
    rows = read_rounds(run.folder / "rounds.jsonl")
    assert [row["round"] for row in rows] == list(range(1, run.status.rounds + 1))
    assert not list(run.folder.glob("attempt*")), "nothing is kept of sums that are made"
    local = local_model(folder, SITES, "training.clients_per_round=0", *settings)
    assert same_model(run.folder / "model.safetensors", local)
    simulated = read_rounds(folder / "server" / "rounds.jsonl")
    assert [(row["metrics"], row.get("counts")) for row in rows] == [
        (row["metrics"], row.get("counts")) for row in simulated
    ]


def kill_serverapp(federation: Federation) -> None:
    for pid in federation.pids("flwr-serverapp"):
        os.kill(pid, signal.SIGKILL)


def test_fedbuff_a_round_does_not_wait_for_the_one_before_and_kills_lose_neither(
    federation: Federation, tmp_path: Path
) -> None:
    """One site of the first cohort has stopped, and the second round's sum is there before the first one's."""
    settings = ("training.clients_per_round=0", *BUFFERED)
    first = federation.labels[0]
    log, slow = federation.folder / f"{first}.log", federation.processes[first]
    wait_for(lambda: any(line.endswith("  connected") for line in log.read_text().splitlines()))
    slow.send_signal(signal.SIGSTOP)
    try:
        run = federation.submit(*settings)
        wait_for(lambda: (run.folder / "attempt" / "4.json").exists(), 120, federation.said)
        assert run.num_rounds == 0
    finally:
        slow.send_signal(signal.SIGCONT)
    federation.wait_rounds(run, 2)
    kill_serverapp(federation)
    federation.wait_rounds(run, 4)
    for name in list(federation.processes):
        federation.kill(name)
    federation.start_all()
    check_whole(federation, run, tmp_path, *BUFFERED)


def test_dp_ftrl_takes_noise_back_over_a_kill_as_if_there_had_been_none(
    federation: Federation, tmp_path: Path
) -> None:
    run = federation.submit("training.clients_per_round=0", *FTRL)
    for rounds in (2, 3):
        federation.wait_rounds(run, rounds)
        kill_serverapp(federation)
    check_whole(federation, run, tmp_path, *FTRL)


def test_curves_importance_and_concepts_are_those_of_a_simulation(
    federation: Federation, tmp_path: Path
) -> None:
    run = federation.submit("training.clients_per_round=0", *TELLING)
    check_whole(federation, run, tmp_path, *TELLING)
    assert read_rounds(run.folder / "rounds.jsonl")[-1]["counts"]
