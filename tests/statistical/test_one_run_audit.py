"""I9: one whole training, attacked: canary records at every site, canary clients in the sum.

Everything from `tacit simulate` is real: sites on disk, guard, DP-SGD of the client, encoding, noise, ledger, server. A
claim below 3 is refuted by the attack as soon as clipping or noise is missing (see the seeded faults).
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from client import bookkeeping
from simulations.auditing.audit import audit
from simulations.auditing.clients import audit_clients
from simulations.auditing.one_run import audit_records
from tacit import config
from tacit.cli import main
from tacit.config import Experiment
from tacit.report.audit_record import Attack, AuditRecord

TEXT = """
name = "audited"
[data]
source = "breast_cancer"
[partition]
num_clients = 4
[task.model]
name = "mlp"
hidden = [32]
[training]
rounds = 3
local_steps = 1
sampling_rate = 1.0
learning_rate = 0.2
[secure_aggregation]
update_clip = 1.0
"""
RECORD = "[privacy.record]\nepsilon = 2.5\ndelta = 1e-5\n"
CLIENT = "[privacy.client]\nepsilon = 2.5\ndelta = 1e-5\n"
CENTRAL = CLIENT + 'noise = "central"\n'
SEEDS = 20


def experiment(privacy: str, **training: object) -> Experiment:
    settings = [f"training.{key}={value}" for key, value in training.items()]
    return config.loads(TEXT + privacy, source="", overrides=settings)


def records(privacy: str, out: Path, seed: int) -> Attack:
    return audit_records(experiment(privacy), out, 1000, seed=seed, guesses=100)


def clients(privacy: str, out: Path, seed: int) -> Attack:
    return audit_clients(experiment(privacy, rounds=3), out, 120, seed=seed, guesses=80)


def test_I9_canary_records_measure_less_than_is_claimed(tmp_path: Path) -> None:
    attack = records(RECORD, tmp_path, 1)
    assert (attack.unit, attack.canaries, attack.guesses) == ("record", 1000, 100)
    assert attack.lower_bound <= attack.claim < 3
    assert 0.52 < attack.auc < 0.9, "an attack that sees nothing would pass whatever is wrong"


def test_I9_with_clipping_off_the_command_finds_the_claim_false(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The seeded fault in the running program: a norm of minus infinity is never cut."""
    monkeypatch.setattr(bookkeeping, "MARGIN", -math.inf)
    file = tmp_path / "audited.toml"
    file.write_text(TEXT + RECORD)
    wish = ["--method", "one-run", "--canaries", "1000", "--guesses", "100", "--seed", "1"]
    with pytest.raises(SystemExit) as ended:
        main(["audit", "privacy", str(file), *wish, "--out", str(tmp_path / "audit")])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "the claim is false: one-run measures an epsilon of at least" in said and said.count("\n") == 1
    record = AuditRecord.model_validate_json((tmp_path / "audit" / "audit.json").read_text())
    [attack] = record.crossed
    assert attack.correct >= 98 and attack.lower_bound > attack.claim
    assert "THE CLAIM IS FALSE" in (tmp_path / "audit" / "audit.html").read_text()


@pytest.mark.parametrize("privacy", [CLIENT, CENTRAL], ids=["distributed", "central"])
def test_I9_canary_clients_measure_less_than_is_claimed(privacy: str, tmp_path: Path) -> None:
    attack = clients(privacy, tmp_path, 1)
    assert (attack.unit, attack.canaries) == ("client", 120)
    assert attack.lower_bound <= attack.claim < 3
    assert 0.52 < attack.auc < 0.9
    assert attack.estimate is not None and attack.estimate < 2 * attack.claim  # of so few canaries


def test_I9_without_privacy_every_guess_is_right(tmp_path: Path) -> None:
    """What the attacks are worth: 100 of 100 guesses about 1000 canaries prove 3.47 at delta 1e-5."""
    attack = records("", tmp_path / "records", 2)
    assert attack.correct == 100 and round(attack.lower_bound, 2) == 3.47
    attack = clients("", tmp_path / "clients", 2)
    assert attack.correct == 80 and attack.lower_bound > 3.2 and attack.verdict == "no claim"


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["records", "clients"])
def test_I9_twenty_seeds_of_twenty_stay_below_the_claim(kind: str, tmp_path: Path) -> None:
    bounds = []
    for seed in range(SEEDS):
        run = records(RECORD, tmp_path, seed) if kind == "records" else clients(CLIENT, tmp_path, seed)
        bounds.append(run.lower_bound)
        assert run.lower_bound <= run.claim, f"seed {seed}"
    print(f"{kind}: bounds {sorted(round(bound, 2) for bound in bounds)}")


def test_a_digit_is_rebuilt_from_its_update_and_not_from_the_masked_or_the_noised_one(tmp_path: Path) -> None:
    """All four pictures are in the report."""
    digits = ("data.source=digits", "task.kind=array_classification")
    private = config.loads(TEXT + RECORD, source="", overrides=digits)
    done = audit(private, tmp_path, method="inversion", seed=3)
    assert done.inversion is not None and done.inversion.shape == (8, 8)
    plain, masked, noised = (image.similarity for image in done.inversion.images[1:])
    assert plain is not None and plain > 0.99
    assert all(likeness is not None and abs(likeness) < 0.75 for likeness in (masked, noised))
    page = (tmp_path / "audit.html").read_text()
    assert page.count('viewBox="0 0 8 8"') == 4 and (tmp_path / "audit.json").exists()
