"""A generator and its discriminator: what records reach, what they do not, and that the rows become like them."""

import csv
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.training import Job, LocalTrainer
from tacit import config
from tacit.data.readers import read_table
from tacit.errors import ConfigError
from tacit.inference.fidelity import Fidelity, fidelity
from tacit.inference.synthetic import made_up, write_rows
from tacit.inference.trained import Trained
from tacit.privacy.noise import SeededKeys
from tacit.privacy.plan import PrivacyPlan
from tacit.tasks import Follows, Records, Task, load_task
from tacit.tasks.models.gan import KNOWN_ROWS
from tacit.tasks.synthesis import TabularSynthesis
from tacit.tasks.weights import Arrays, initial_arrays, load_arrays

TEXT = """
name = "made up"
device = "cpu"
[task]
kind = "tabular_synthesis"
model = {name = "gan", hidden = [24], activation = "leaky_relu", latent = 4}
[data]
source = "csv"
path = "unused.csv"
[data.schema]
label = "y"
classes = ["no", "yes"]
[data.schema.columns]
a = {kind = "numeric", range = [0, 10]}
b = {kind = "numeric", range = [-1, 1], indicator = true}
c = {kind = "categorical", categories = ["u", "v", "w"]}
[training]
rounds = 20
local_steps = 20
sampling_rate = 0.2
optimizer = "rmsprop"
learning_rate = 0.005
"""
PRIVATE = "privacy.record={epsilon=8.0, delta=1e-5}"


def made(*overrides: str) -> tuple[config.Experiment, TabularSynthesis]:
    experiment = config.loads(TEXT, overrides=overrides)
    task = load_task(experiment)
    assert isinstance(task, TabularSynthesis)
    return experiment, task


def table_file(path: Path, rows: int = 600, seed: int = 1) -> Path:
    """a is about 2 or 7 by the class; b goes with a, and is empty in one of eight rows; w is rare."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "c", "y"])
        for _ in range(rows):
            y = rng.random() < 0.4
            a = float(np.clip(rng.normal(7 if y else 2, 1), 0, 10))
            b = (
                ""
                if rng.random() < 0.125
                else round(float(np.clip((a - 5) / 6 + rng.normal() * 0.1, -1, 1)), 3)
            )
            writer.writerow(
                [round(a, 3), b, rng.choice(["u", "v", "w"], p=[0.6, 0.35, 0.05]), ["no", "yes"][y]]
            )
    return path


@functools.cache
def records(rows: int = 600, seed: int = 1) -> Records:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return made()[1].read(table_file(Path(folder) / "data.csv", rows, seed), "train")


def trainer_of(experiment: config.Experiment, task: Task) -> LocalTrainer:
    return LocalTrainer(task, PrivacyPlan.of(experiment), experiment)


def trained(trainer: LocalTrainer, arrays: Arrays, rounds: int, keys: SeededKeys | None = None) -> Arrays:
    for number in range(1, rounds + 1):
        rows = records()
        delta = trainer.train(arrays, Job("north", rows, rows.num_rows), number, keys or SeededKeys(1))
        arrays = {name: arrays[name] + delta[name] for name in arrays}
    return arrays


def first(task: Task, seed: int = 3) -> Arrays:
    return initial_arrays(task, private=False, seed=seed)


def of_generator(arrays: Arrays) -> dict[str, Any]:
    return {name: array for name, array in arrays.items() if name.startswith("generator.")}


def test_a_record_has_its_class_behind_its_features_and_both_parts_travel() -> None:
    _, task = made()
    assert isinstance(task, Task) and isinstance(task, Follows)
    rows = records()
    assert rows.features.shape == (600, 6 + 2) and len(task.schema.feature_names) == 6
    assert torch.equal(rows.features[:, 6:].argmax(1), rows.targets)
    names = [*first(task)]
    assert {name.split(".")[0] for name in names} == {"generator", "discriminator"}


@pytest.mark.parametrize("promise", ["privacy=none", PRIVATE])
def test_given_the_weights_that_records_have_trained_what_follows_depends_on_no_record(promise: str) -> None:
    """The discriminator is held where it is, whatever records say; then nothing of them is in the generator."""
    experiment, task = made(promise)
    arrays, after = first(task), []
    others = Records(records(300, 9).features.flip(0), torch.ones(300, dtype=torch.int64))
    for rows in (records(), others, Records(others.features[:0], others.targets[:0])):
        trainer = trainer_of(experiment, task)
        fill = trainer.gradients.fill

        def held(*arguments: Any, fill: Any = fill, model: Any = trainer.model) -> None:
            fill(*arguments)
            for parameter in model.discriminator.parameters():
                parameter.grad.zero_()

        trainer.gradients.fill = held  # type: ignore[method-assign]
        after.append(trainer.train(arrays, Job("north", rows, 600), 1, SeededKeys(1)))
    one, *rest = after
    assert all(np.array_equal(one[name], array) for each in rest for name, array in each.items())
    assert all(np.any(array) for array in of_generator(one).values())
    assert not any(np.any(array) for name, array in one.items() if name.startswith("discriminator."))


def test_what_a_step_on_records_does_to_the_part_that_follows_is_written_over() -> None:
    experiment, task = made("training.local_steps=5", "task.generator_every=2")
    arrays, after = first(task), []
    for leak in (0.0, 1.0):
        trainer = trainer_of(experiment, task)

        class Leaking:
            """Moves the generator by what is in the batch, at the end of a step."""

            def __init__(self, trainer: LocalTrainer, leak: float) -> None:
                self.trainer, self.leak, self.fill_it = trainer, leak, trainer.gradients.fill
                self.engine = trainer.gradients.engine

            def fill(self, batch: Records, normaliser: float, noise: Any) -> None:
                self.fill_it(batch, normaliser, noise)
                with torch.no_grad():
                    for parameter in self.trainer.model.generator.parameters():  # type: ignore[union-attr]
                        parameter += self.leak * batch.features.sum()

        trainer.gradients = Leaking(trainer, leak)
        after.append(trainer.train(arrays, Job("north", records(), 600), 1, SeededKeys(1)))
    assert all(np.array_equal(after[0][name], array) for name, array in after[1].items())


def test_a_generator_makes_a_step_after_every_so_many_of_its_discriminator() -> None:
    arrays = first(made()[1])
    steps = []
    for every in (1, 3, 4):
        experiment, task = made(
            "training.local_steps=4", f"task.generator_every={every}", "training.optimizer=adam"
        )
        trainer = trainer_of(experiment, task)
        trainer.train(arrays, Job("north", records(), 600), 1, SeededKeys(1))
        assert trainer.following is not None and trainer.following.optimizer is not None
        steps += [int(state["step"]) for state in [*trainer.following.optimizer.state.values()][:1]]
    assert steps == [4, 1, 1]


@pytest.mark.parametrize("by", ["round", "step"])
def test_a_generator_has_the_learning_rate_that_its_name_says(by: str) -> None:
    """No gradient of a record reaches it, and so it does not count as trained."""
    moved = []
    for factors in ("{}", '{"generator.*"=0.25}'):
        experiment, task = made(
            "training.local_steps=1", "training.optimizer=sgd",
            f"training.schedule_by={by}", f"training.rate_factors={factors}",
        )  # fmt: skip
        moved.append(
            trainer_of(experiment, task).train(first(task), Job("north", records(), 600), 1, SeededKeys(1))
        )
    for name, delta in moved[0].items():
        factor = 0.25 if name in of_generator(moved[0]) else 1.0
        np.testing.assert_allclose(moved[1][name], factor * delta, rtol=1e-3, atol=1e-6)
    assert max(np.abs(delta).max() for delta in of_generator(moved[0]).values()) > 1e-5


def test_what_follows_is_the_same_the_next_time_and_other_in_another_round_or_site() -> None:
    experiment, task = made("training.local_steps=3")
    arrays, found = first(task), []
    for site, number in (("north", 1), ("north", 1), ("north", 2), ("south", 1)):
        trainer = trainer_of(experiment, task)
        torch.manual_seed(len(found))
        found.append(trainer.train(arrays, Job(site, records(), 600), number, SeededKeys(1)))
    same, again, *others = (of_generator(delta) for delta in found)
    assert all(np.array_equal(same[name], again[name]) for name in same)
    assert all(np.any(same[name] != other[name]) for other in others for name in same)


def test_a_model_that_is_loaded_between_rounds_goes_on_to_the_same_one() -> None:
    """A resumed run, or another process for each client: nothing of a trainer is in what the next one makes."""
    experiment, task = made("training.local_steps=3")
    at_once = trained(trainer_of(experiment, task), first(task), 3)
    arrays = first(task)
    for number in (1, 2, 3):
        delta = trainer_of(experiment, task).train(
            arrays, Job("north", records(), 600), number, SeededKeys(1)
        )
        arrays = {name: arrays[name] + delta[name] for name in arrays}
    assert all(np.array_equal(arrays[name], array) for name, array in at_once.items())


def of_file(task: TabularSynthesis, arrays: Arrays, folder: Path) -> Fidelity:
    """How like other rows of the same kind those are that a model makes up."""
    experiment, model = made()[0], task.model()
    load_arrays(model, arrays)
    path = folder / "made.csv"
    write_rows(made_up(Trained(experiment, task, model.eval()), 600, 5), task.schema, path)
    real = read_table(table_file(folder / "real.csv", 600, 77), task.schema)
    return fidelity(read_table(path, task.schema), real, None, task.schema)


@pytest.mark.parametrize("promise", ["privacy=none", PRIVATE])
def test_made_up_rows_become_like_the_records(promise: str, tmp_path: Path) -> None:
    experiment, task = made(promise, "task.class_shares=[0.6, 0.4]", "insecure_seeded_noise=true")
    arrays = first(task)
    before = of_file(task, arrays, tmp_path)
    after = of_file(task, trained(trainer_of(experiment, task), arrays, 9), tmp_path)
    mean = [sum(found.columns.values()) / len(found.columns) for found in (before, after)]
    assert mean[1] < mean[0] / 2
    assert after.correlation < before.correlation
    assert after.auroc_synthetic is not None and after.auroc_synthetic > 0.95


def test_each_metric_is_a_share_of_a_record_and_of_that_record_alone() -> None:
    """`coverage_error` lies in [0, 1] for each record, whatever the outputs, NaN included."""
    _, task = made()
    outputs = torch.tensor([[0.0, 0.0, 2.0], [0, 0, -1], [0, 0, float("nan")], [0, 0, float("inf")]])
    assert task.metrics(outputs, torch.zeros(4))["coverage_error"].tolist() == [0.5, 0.0, 1.0, 1.0]
    model = task.model().eval()
    rows = records()
    with torch.no_grad():
        whole = model(rows.features)
        one = model(rows.features[7:8])
    torch.testing.assert_close(whole[7:8], one)
    near = torch.Generator().manual_seed(0)
    known = torch.eye(2).repeat_interleave(KNOWN_ROWS, 0)
    generator = task.follower(model)
    with torch.no_grad():
        rows_of_class = generator(known, near)[known[:, 1] > 0]
        assert (
            float(model(torch.cat([rows_of_class, torch.tensor([[0.0, 1.0]] * KNOWN_ROWS)], 1))[:, 2].max())
            < 1e-6
        )


def test_the_losses_are_those_of_the_paper() -> None:
    _, task = made()
    said = torch.tensor([[0.3, -1.2, 0.0], [4.0, 2.0, 0.0]])
    real, fake = said[:, 0].sigmoid(), said[:, 1].sigmoid()
    torch.testing.assert_close(task.loss(said, torch.zeros(2)), -real.log() - (1 - fake).log())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('task.model={name = "mlp"}', 'task.model.name: "mlp" makes no rows up; gan does'),
        ("task.class_shares=[1.0]", "task.class_shares: has 1 numbers, and there are 2 classes"),
        ("data.schema.scaling=federated", "data.schema.scaling: is not for rows that are made up"),
        ("task.generator_every=21", r"task.generator_every is above training.local_steps = 20"),
        ("task.kind=tabular", 'task.model.name: "gan" makes rows up .* set task.kind to tabular_synthesis'),
        ("task.model.channels=[2, 2]", 'channels: is no key of name = "gan"'),
    ],
)
def test_what_cannot_be_is_one_line_that_names_the_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_task(config.loads(TEXT, overrides=[override])).model()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["task.class_shares=[0.5, 0.5]", "task.generator_every=2"])
def test_keys_of_a_generator_belong_to_it(override: str) -> None:
    with pytest.raises(ConfigError, match=r"is for tabular_synthesis, not 'tabular'"):
        config.loads('name = "x"', overrides=[override])


def test_a_generator_whose_weights_are_frozen_stays_as_it_is(tmp_path: Path) -> None:
    import hashlib

    from safetensors.numpy import save_file

    arrays = first(made()[1])
    path = tmp_path / "base.safetensors"
    save_file(dict(arrays), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    start = f'task.start={{file = "{path}", sha256 = "{digest}", freeze = ["generator.*"]}}'
    experiment, task = made(start, PRIVATE)
    kept = first(task)
    assert not of_generator(kept)
    delta = trainer_of(experiment, task).train(kept, Job("north", records(), 600), 1, SeededKeys(1))
    assert all(np.any(array) for array in delta.values())
