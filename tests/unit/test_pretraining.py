"""Learning without labels: an autoencoder that gives back what was masked, then a classifier that begins from it."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.draws import generator_on
from client.participant import Run
from simulations.run import simulate
from tacit import config
from tacit.privacy.ledger import Ledger
from tacit.tasks import Records
from tests.matrix import FAMILIES, PROMISES
from tests.unit.small_federation import Federation
from tests.unit.test_transfer import saved

MASKED = "{mask = 0.3, noise = 0.3}"
EXPERIMENT = """
name = "pretraining"
device = "cpu"
[task]
kind = "{kind}"
model = {{name = "{model}", hidden = [32, 4], activation = "tanh"}}
[data]
source = "npz"
path = "{path}"
[data.arrays]
shape = [80]
classes = ["low", "high"]
scale = 4.0
[partition]
num_clients = 3
[training]
rounds = 10
local_steps = {steps}
sampling_rate = {rate}
optimizer = "adam"
learning_rate = {step}
[secure_aggregation]
engine = "ideal"
[simulation]
baselines = false
executor = "serial"
"""


def start_from(path: Path, head: str, *, freeze: str = "[]") -> str:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f'task.start={{file="{path}", sha256="{digest}", head=["{head}"], freeze={freeze}}}'


def test_what_is_given_back_is_the_record_as_it_is_and_what_is_seen_is_masked() -> None:
    text = EXPERIMENT.format(
        kind="array_anomaly", model="autoencoder", path="x.npz", steps=1, rate=0.5, step=0.1
    )
    sites = [{"label": label, "rows": 50} for label in ("a", "b", "c")]
    made = config.loads(text, overrides=["task.augment={mask = 0.3}"]).with_tables(
        federation={"sites": sites}
    )
    trainer = Run(made.to_toml()).trainer
    x = torch.randn(50, 80)
    targets = torch.cat([x, torch.zeros(50, 1)], 1)
    seen = trainer.augmentation.seen(Records(x, targets), generator_on(torch.device("cpu"), bytes(8)))
    assert torch.equal(seen.targets, targets) and seen.inputs.shape == x.shape
    assert float((seen.inputs == 0).double().mean()) == pytest.approx(0.3, abs=0.05)


def test_the_same_sites_pay_for_pretraining_and_for_what_begins_from_it(tmp_path: Path) -> None:
    """The encoder's layers have the names of an mlp's with the same `hidden`; both runs are in each site's ledger."""
    text = FAMILIES["autoencoder"].text("autoencoder", tmp_path)
    private = PROMISES["record"], "insecure_seeded_noise=false"
    first = Federation(tmp_path / "first", *private, f"task.augment={MASKED}", text=text)
    encoder = dict(first.run(tmp_path / "pretrained"))
    start = start_from(saved(tmp_path, encoder)[0], "2.*")
    text = FAMILIES["mlp"].text("mlp", tmp_path)
    second = Federation(tmp_path / "second", *private, start, text=text)
    assert all(np.array_equal(second.initial()[name], encoder[name]) for name in ("0.weight", "0.bias"))
    second.sites = first.sites
    for policy in first.sites.glob("*/policy.toml"):  # which a simulation writes for its own task
        policy.write_text(policy.read_text().replace('"tabular_anomaly"', '"tabular_anomaly", "tabular"'))
    spent = []
    for run in (None, second):
        if run is not None:
            run.run(tmp_path / "classifier")
        for site in sorted(path.parent for path in first.sites.glob("*/site.toml")):
            with Ledger.open(site / "ledger" / "ledger.jsonl", durable=False) as ledger:
                spent.append(ledger.spent(1e-3))
                assert len({entry.run for entry in ledger.entries}) == (1 if run is None else 2)
    before, after = spent[: len(spent) // 2], spent[len(spent) // 2 :]
    assert all(1.3 * b < a < 2 * b for b, a in zip(before, after, strict=True))


def records(folder: Path) -> dict[str, Path]:
    """Three numbers behind eighty noisy ones; the sign of the first is what few records have a label of."""
    rng = np.random.default_rng(0)
    shown = rng.normal(size=(3, 80))

    def drawn(rows: int) -> tuple[Any, Any]:
        hidden = rng.normal(size=(rows, 3))
        return (hidden @ shown + 4.0 * rng.normal(size=(rows, 80))).astype(np.float32), hidden[:, 0] > 0

    x, _ = drawn(1200)
    np.savez(folder / "unlabelled.npz", x=x, y=np.zeros(1200, dtype=np.int64))
    x, y = drawn(1048)
    split = np.array(["train"] * 48 + ["test"] * 1000)
    np.savez(folder / "labelled.npz", x=x, y=y.astype(np.int64), split=split)
    return {name: folder / f"{name}.npz" for name in ("unlabelled", "labelled")}


@pytest.mark.slow
def test_few_labels_do_more_on_layers_that_have_learned_to_give_back_what_was_masked(tmp_path: Path) -> None:
    data = records(tmp_path)
    text = EXPERIMENT.format(
        kind="array_anomaly", model="autoencoder", path=data["unlabelled"], steps=30, rate=0.2, step=0.005
    )
    simulate(config.loads(text, overrides=[f"task.augment={MASKED}"]), tmp_path / "pretrained")
    text = EXPERIMENT.format(
        kind="array_classification", model="mlp", path=data["labelled"], steps=20, rate=0.5, step=0.02
    )
    start = start_from(tmp_path / "pretrained" / "model.safetensors", "4.*", freeze='["*"]')
    accuracy = {
        name: simulate(config.loads(text, overrides=overrides), tmp_path / name).final.metrics["accuracy"]
        or 0.0
        for name, overrides in (("drawn", []), ("begun", [start]))
    }
    assert accuracy["begun"] > accuracy["drawn"] + 0.03 and accuracy["begun"] > 0.82
