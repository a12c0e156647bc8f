"""A promise for clients from experiment to report: one bound, noise in the sum or at the server, each sum paid for."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message

from client.participant import participant_of
from client.site import Site
from server.state import RunState, read_rounds
from simulations.cohort import train_cohort
from simulations.run import simulate
from strategies.rounds import Progress
from tacit import config
from tacit.privacy.plan import SUM
from tacit.report.record import RunRecord
from tests.unit.small_federation import TEXT, Federation, Misbehaving, is_step, same

CLIENT = "privacy.client={epsilon=20.0, delta=0.1}"
ADAPTIVE = "privacy.client={epsilon=20.0, delta=0.1, target_quantile=0.5}"
CENTRAL = 'privacy.client={epsilon=20.0, delta=0.1, noise="central"}'
RECORD = "privacy.record={epsilon=20.0, delta=1e-5, metrics_share=0.1}"
SEEDED = "insecure_seeded_noise=true"
METRICS = "evaluation.metrics=true"
IDEAL = ('secure_aggregation.engine="ideal"',)
OFF = ("secure_aggregation.enabled=false",)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Federation]:
    made: list[Federation] = []

    def one(*settings: str) -> Federation:
        made.append(Federation(tmp_path / f"sites-{len(made)}", *settings))
        return made[-1]

    return one


def purposes(federation: Federation, site: int) -> list[tuple[int, int, str]]:
    with Site.open(federation.sites / str(site)).ledger() as ledger:
        return [(entry.round, entry.attempt, entry.purpose) for entry in ledger.entries]


@pytest.mark.parametrize("executor", [None, train_cohort], ids=["messages", "cohort"])
@pytest.mark.parametrize(
    "privacy",
    [(CLIENT,), (ADAPTIVE,), (CENTRAL,), (RECORD, ADAPTIVE)],
    ids=["fixed", "adaptive", "central", "both"],
)
def test_protocol_and_ideal_sum_give_bit_identical_models_with_the_same_keys(
    make: Callable[..., Federation], tmp_path: Path, privacy: tuple[str, ...], executor: Any
) -> None:
    settings = (*privacy, SEEDED, METRICS)
    protocol, ideal = make(*settings), make(*settings, *IDEAL)
    assert same(protocol.run(tmp_path / "protocol"), ideal.run(tmp_path / "ideal", executor=executor))
    rows = [read_rounds(tmp_path / name / "rounds.jsonl") for name in ("protocol", "ideal")]
    for a, b in zip(*rows, strict=True):
        for key in ("survivors", "refusals", "metrics", "bits", "threshold", "epsilon", "clip"):
            assert a[key] == b[key], key
    clips = [row["clip"] for row in rows[0]]
    assert len(set(clips)) == (3 if ADAPTIVE in privacy else 1)
    expected = ["training", "metrics", SUM] if RECORD in privacy else [SUM]
    assert purposes(protocol, 2) == [(number, 1, p) for number in (1, 2, 3) for p in expected]


def test_noise_is_drawn_anew_in_every_run_and_central_noise_without_a_secure_sum_too(
    make: Callable[..., Federation], tmp_path: Path
) -> None:
    for name, settings in (("distributed", (CLIENT,)), ("central", (CENTRAL, *OFF))):
        a, b = (make(*settings).run(tmp_path / f"{name}-{i}") for i in range(2))
        assert not any((a[key] == b[key]).all() for key in a)


def test_a_second_attempt_sends_the_same_update_with_noise_of_its_own_and_pays_for_it(
    make: Callable[..., Federation], tmp_path: Path
) -> None:
    federation = make(RECORD, CLIENT, "training.rounds=1")
    encoded: dict[int, list[bytes]] = {}
    vanishing = {0, 1, 2}  # so that too few confirm, with all vectors sent

    def note(message: Message, real: Any, site: int) -> Message | None:
        if is_step(message, "tacit2"):
            text = federation.experiment.to_toml()
            session = participant_of(text, federation.sites / str(site), True).session()
            assert session is not None
            encoded.setdefault(site, []).append(session.encoded.values.tobytes())
        if is_step(message, "tacit3") and site in vanishing:
            vanishing.discard(site)
            raise RuntimeError("gone")
        return None

    federation.run(tmp_path / "run", app=Misbehaving(note))
    assert all(len(vectors) == 2 and len(set(vectors)) == 1 for vectors in encoded.values())
    paid = [(1, 1, "training"), (1, 1, SUM), (1, 2, SUM)]
    assert [purposes(federation, site) for site in range(6)] == [paid] * 6


def test_I16_the_clip_norm_in_force_survives_a_restart(
    make: Callable[..., Federation], tmp_path: Path
) -> None:
    class StopsAfterTwo(RunState):
        def save(self, progress: Progress, record: Any) -> None:
            super().save(progress, record)
            if progress.round == 2:
                raise InterruptedError

    federation, other = make(ADAPTIVE, SEEDED), make(ADAPTIVE, SEEDED)
    whole = federation.run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        other.run(tmp_path / "parts", state=StopsAfterTwo)
    assert same(other.run(tmp_path / "parts"), whole)
    rows = [read_rounds(tmp_path / name / "rounds.jsonl") for name in ("whole", "parts")]
    assert [row["clip"] for row in rows[0]] == [row["clip"] for row in rows[1]]


def test_a_server_that_shows_one_site_another_clip_norm_gets_no_answer_from_it(
    make: Callable[..., Federation], tmp_path: Path
) -> None:
    federation = make(ADAPTIVE, SEEDED, "training.rounds=1")

    def other(message: Message, real: Any, site: int) -> Message | None:
        if is_step(message, "tacit0") and site == 4:
            message.content["clip"] = ConfigRecord({"norm": "9.0"})
        return None

    federation.run(tmp_path / "run", app=Misbehaving(other))
    (row,) = read_rounds(tmp_path / "run" / "rounds.jsonl")
    assert row["survivors"] == [label for i, label in enumerate(federation.labels) if i != 4]
    assert sum(row["refusals"].values()) >= 1


@pytest.mark.parametrize(
    ("settings", "trusted", "units"),
    [
        ((CLIENT,), "no single party", ["client"]),
        ((CENTRAL,), "it sees the exact sum", ["client"]),
        ((CENTRAL, *OFF), "it sees each client's clipped update", ["client"]),
        ((RECORD, CLIENT), "no single party", ["record", "client"]),
    ],
)
def test_the_report_has_a_promise_for_each_unit_and_names_who_is_trusted(
    tmp_path: Path, settings: tuple[str, ...], trusted: str, units: list[str]
) -> None:
    record = simulate(config.loads(TEXT, overrides=(*settings, "training.rounds=2")), tmp_path / "out")
    assert [entry.unit for entry in record.privacy] == units
    assert RunRecord.model_validate(json.loads((tmp_path / "out" / "report.json").read_text())) == record
    client = record.privacy[-1]
    assert client.epsilon <= 20 and client.epsilon_replaced is not None and trusted in client.trusted
    assert client.epsilon_spent is not None and 0 < client.epsilon_spent <= client.epsilon
    assert all(row.epsilon is not None and math.isfinite(row.epsilon) for row in record.rounds)
    statement = (tmp_path / "out" / "privacy-statement.md").read_text()
    assert "everything that a client has, as a whole" in statement and trusted in statement
    assert ("each single record" in statement) == ("record" in units)
