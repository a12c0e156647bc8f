"""What sites keep for themselves: it never leaves, it comes back as it was, and it counts once it is paid for."""

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from torch import nn

from client.kept import FOLDER, Kept, newest
from server.state import read_rounds
from simulations.run import simulate
from tacit import config
from tacit.errors import ConfigError, Refused, StorageError
from tacit.privacy.plan import PrivacyPlan
from tacit.report.promises import privacy_entries
from tacit.report.record import SecureSum
from tacit.tasks import Records
from tests.unit.client_sites import debits, experiment, model, participant, write_site
from tests.unit.quadratic_task import points_of
from tests.unit.small_federation import Federation, Misbehaving
from tests.unit.strategy_conformance import PLAIN, TEXT

FEDPER = ("strategy.name=fedper", 'strategy.personal=["head"]')


class Normalised:
    """Two layers with a BatchNorm between them; a point is on either side of zero."""

    metric_names = ("accuracy",)

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def read(self, path: Path, split: str) -> Records:
        points = points_of(path, split)
        return Records(torch.from_numpy(points), torch.from_numpy((points.sum(axis=1) > 0).astype(np.int64)))

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"accuracy": (outputs.argmax(1) == targets).float()}


def optima(federation: Federation) -> Any:
    files = [federation.sites / str(i) / "data.csv" for i in range(6)]
    return np.array([points_of(file, "train").astype(np.float64).mean(axis=0) for file in files])


def own(federation: Federation) -> list[dict[str, Any]]:
    found = [newest(federation.sites / str(i)) for i in range(6)]
    assert None not in found
    return found  # type: ignore[return-value]


# -- what travels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way", [(), (PLAIN,), ("secure_aggregation.engine=ideal",)], ids=["protocol", "plain", "ideal"]
)
def test_of_fedper_the_personal_arrays_are_in_no_message_and_come_to_each_sites_own_optimum(
    tmp_path: Path, way: tuple[str, ...]
) -> None:
    rounds = "training.rounds=8"
    federation = Federation(
        tmp_path / "sites", *FEDPER, *way, rounds, "training.learning_rate=0.6", text=TEXT
    )
    seen = set[str]()

    def look(message: Message, real: Any, site: int) -> Message | None:
        answer: Message = real()
        for content in (message.content, answer.content) if answer.has_content() else (message.content,):
            seen.update(name for record in content.array_records.values() for name in record)
        return answer

    shared = federation.run(tmp_path / "run", app=Misbehaving(look))
    assert set(shared) == {"w"}
    assert "head" not in seen
    assert "w" in seen
    best = optima(federation)
    assert np.abs(shared["w"] - best.mean(axis=0)[:2]).max() < 2e-3
    for arrays, optimum in zip(own(federation), best, strict=True):
        assert set(arrays) == {"head"}
        assert arrays["head"][0] == pytest.approx(optimum[2], abs=1e-4)
    assert np.ptp(best[:, 2]) > 0.3, "sites that agree would show nothing"


def test_of_ditto_each_sites_model_lies_between_the_common_one_and_its_own_optimum(tmp_path: Path) -> None:
    """At the optimum of |v - c|^2 / 2 + lambda |v - w|^2 / 2: v = (c + lambda w) / (1 + lambda)."""
    settings = ("strategy.name=ditto", "strategy.personal_mu=0.5", "training.rounds=25", PLAIN)
    federation = Federation(tmp_path / "sites", *settings, text=TEXT)
    shared = federation.run(tmp_path / "run")
    common = np.concatenate([shared["w"], shared["head"]])
    for arrays, optimum in zip(own(federation), optima(federation), strict=True):
        found = np.concatenate([arrays["w"], arrays["head"]])
        assert np.abs(found - (optimum + 0.5 * common) / 1.5).max() < 1e-3


def test_of_fedbn_running_statistics_stay_and_differ(tmp_path: Path) -> None:
    kind = "task.kind=tests.unit.test_personal:Normalised"
    federation = Federation(tmp_path / "sites", "strategy.name=fedbn", kind, text=TEXT)
    shared = federation.run(tmp_path / "run")
    assert set(shared) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    kept = own(federation)
    assert set(kept[0]) == {"1.weight", "1.bias", "1.running_mean", "1.running_var"}
    assert np.abs(kept[0]["1.running_mean"] - kept[1]["1.running_mean"]).max() > 1e-3


def test_metrics_are_of_the_model_that_the_site_uses(tmp_path: Path) -> None:
    settings = (*FEDPER, PLAIN, "evaluation.metrics=true", "training.rounds=12")
    federation = Federation(tmp_path / "sites", *settings, text=TEXT)
    shared = federation.run(tmp_path / "run")
    near, total = 0, 0
    for i, arrays in enumerate(own(federation)):
        points = points_of(federation.sites / str(i) / "data.csv", "test")
        place = np.concatenate([shared["w"], arrays["head"]])
        near += int((np.linalg.norm(points - place, axis=1) < 1).sum())
        total += len(points)
    # The last round reports on the models before it, which have all but arrived.
    assert read_rounds(tmp_path / "run" / "rounds.jsonl")[-1]["metrics"]["near"] == pytest.approx(
        near / total, abs=0.02
    )


def test_a_report_has_the_figures_of_the_sites_own_models(tmp_path: Path) -> None:
    text = TEXT.replace("keep = 2", "keep = 0")
    wanted = config.loads(text, overrides=[*FEDPER, PLAIN])
    record = simulate(wanted, tmp_path / "run")
    assert len(record.final.sites) == 6
    assert all(site.metrics["near"] is not None for site in record.final.sites)
    assert all(not item.metrics for item in record.rounds), "what is kept goes with the last round"


# -- what is kept ------------------------------------------------------------------------------------------------


ONE, ANOTHER = bytes(32), bytes([1]) * 32  # digests of experiments


def array(value: float) -> dict[str, Any]:
    return {"a": np.array([value], dtype=np.float32)}


def test_a_round_that_is_asked_for_again_starts_from_what_the_site_had_before_it(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "run", ONE)
    assert kept.before(3) is None
    for number in (3, 5, 6):
        kept.put_aside(number, array(number))
        kept.take_over(number)
    for number, before in ((7, 6.0), (6, 5.0)):
        found = kept.before(number)
        assert found is not None
        assert found["a"] == before
    kept.put_aside(6, array(60.0))
    kept.take_over(6)
    again = kept.before(7)
    assert again is not None
    assert again["a"] == 60.0
    with pytest.raises(Refused, match="what this site kept before round 5 is gone"):
        kept.before(5)
    assert Kept(tmp_path, "another run", ONE).before(9) is None


def test_what_is_put_aside_counts_when_it_is_taken_over_and_not_before(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "run", ONE)
    kept.put_aside(1, array(1.0))
    assert kept.before(2) is None
    kept.take_over(1)
    kept.take_over(1)
    assert kept.before(2) is not None


def test_kept_files_are_the_owners_alone_and_their_folder_is_no_text_of_the_servers(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "../../elsewhere", ONE)
    kept.put_aside(1, array(1.0))
    kept.take_over(1)
    [folder] = (tmp_path / FOLDER).iterdir()
    [file] = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    file.write_bytes(b"damaged")
    with pytest.raises(StorageError, match="cannot be read"):
        kept.before(2)


def test_what_a_round_has_made_is_used_in_later_rounds_only_once_the_round_is_paid_for(
    tmp_path: Path,
) -> None:
    made = experiment(strategy={"name": "fedper", "personal": ["*bias"]})
    client = participant(write_site(tmp_path / "north"), made)
    received = {name: a for name, a in model(made).items() if not name.endswith("bias")}
    client.update("run-1", 1, received)
    kept = client.kept("run-1")
    assert kept.before(2) is None
    assert debits(tmp_path / "north") == []
    client.debit("run-1", 1, attempt=1)
    assert len(debits(tmp_path / "north")) == 1
    found = kept.before(2)
    assert found is not None
    assert any(np.abs(a).max() > 0 for a in found.values())


def test_what_was_made_under_one_experiment_is_never_used_under_another_whatever_its_run_is_called(
    tmp_path: Path,
) -> None:
    """A run for clients keeps weights without noise: one for records of the same id would begin with them."""
    for_clients = {"client": {"epsilon": 3.0, "delta": 1e-3}}
    both = [
        experiment(private=False, privacy=for_clients, strategy={"name": "fedper", "personal": ["*bias"]}),
        experiment(strategy={"name": "fedper", "personal": ["*bias"]}),
    ]
    folder = write_site(tmp_path / "north")
    first, second = (participant(folder, made) for made in both)
    received = {name: a for name, a in model(both[0]).items() if not name.endswith("bias")}
    first.update("run-1", 1, received)
    first.debit("run-1", 1, attempt=1)
    assert first.kept("run-1").before(2) is not None
    assert second.kept("run-1").before(2) is None
    assert Kept(tmp_path, "run", ANOTHER).before(2) is None


# -- what is refused ---------------------------------------------------------------------------------------------

RECORD = "privacy.record={epsilon=5.0, delta=1e-4}"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("strategy.name=fedper",), 'name = "fedper" needs personal'),
        (('strategy.personal=["w"]',), 'personal belongs to name = "fedper"'),
        (("strategy.name=fedbn", RECORD), "BatchNorm mixes records"),
        (("strategy.name=ditto", RECORD, "evaluation.metrics=true", "privacy.record.metrics_share=0.1"),
         "which privacy.record does not pay for"),
        ((*FEDPER, "evaluation.metrics=true", "evaluation.patience=2"), "goes with the last one"),
        ((*FEDPER, "partition.kind=virtual"), "a virtual client has no folder"),
    ],
)  # fmt: skip
def test_a_combination_that_cannot_work_is_refused(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config.loads(TEXT, overrides=overrides)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("strategy.name=fedper", 'strategy.personal=["tail*"]'), "called like 'tail\\*'; it has w, head"),
        (("strategy.name=fedper", 'strategy.personal=["*"]'), "leaves nothing of the model"),
        (("strategy.name=fedbn",), "keeps BatchNorm layers at the sites, and the model has none"),
        ((*FEDPER, "simulation.executor=stacked"), "each site begins with what it has kept"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_the_strategy_is_refused(
    tmp_path: Path, settings: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        simulate(config.loads(TEXT, overrides=[*settings, PLAIN]), tmp_path / "run")


def test_the_statement_says_what_the_model_that_a_site_keeps_is_worth() -> None:
    said = {"fedper": "has the same promise for it", "ditto": "is promised nothing", "fedavg": ""}
    sites = 'federation.sites=[{label="a", rows=50}, {label="b", rows=50}, {label="c", rows=50}]'
    secure = SecureSum(enabled=True, engine="protocol")
    for name, words in said.items():
        overrides = [f"strategy.name={name}", RECORD, sites, "secure_aggregation.max_dropouts=0"]
        overrides += ['strategy.personal=["head"]'] if name == "fedper" else []
        made = config.loads(TEXT, overrides=overrides)
        [entry] = privacy_entries(made, PrivacyPlan.of(made), None, secure=secure, simulation=False)
        kept = [point for point in entry.not_covered if "each site keeps" in point]
        assert len(kept) == (name != "fedavg")
        assert all(words in point for point in kept)


def test_what_is_kept_and_paid_for_is_on_the_disk_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, real = list[str](), os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr(os, "fsync", fsync)
    kept = Kept(tmp_path, "run", ONE)
    kept.put_aside(1, {"a": np.zeros(1, np.float32)})
    folder = next((tmp_path / "kept").iterdir())
    assert synced == [tmp_path.name, "kept", ".000001.aside.tmp", folder.name]
    kept.take_over(1)
    assert synced[4:] == [folder.name]
