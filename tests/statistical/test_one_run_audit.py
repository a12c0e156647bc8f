"""I9: one whole training, attacked: canary records at every site, canary clients in the sum.

Everything from `tacit simulate` is real: sites on disk, guard, DP-SGD of the client, encoding, noise, ledger, server. A
claim below 3 is refuted by the attack as soon as clipping or noise is missing (see the seeded faults).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.auditing.audit import audit
from simulations.auditing.clients import audit_clients
from simulations.auditing.one_run import audit_records
from tacit import config
from tacit.config import Experiment
from tacit.report.audit_record import Attack

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


def test_membership_and_inversion_find_a_run_without_privacy(tmp_path: Path) -> None:
    """Long training on few records is remembered; the report is written."""
    private = experiment(RECORD)
    done = audit(private, tmp_path, method="inversion", seed=3)
    assert done.inversion is not None
    plain, masked, noised = (image.similarity for image in done.inversion.images[1:])
    assert plain is not None and plain > 0.99
    assert all(likeness is not None and abs(likeness) < 0.75 for likeness in (masked, noised))
    assert (tmp_path / "audit.html").stat().st_size > 10_000 and (tmp_path / "audit.json").exists()
