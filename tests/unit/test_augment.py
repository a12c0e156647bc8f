"""Views of records: which are offered for what, what each draws, and who sees them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.draws import generator_on
from client.evaluation import record_metrics
from client.training import Job, LocalTrainer
from client.views import Augmentation, Views
from simulations import workers
from simulations.stacked import executor_for
from simulations.workers import WorkersTrainer, close_pools
from tacit import config
from tacit.augmentation import FITS, MIXING, Augment
from tacit.data.array_schema import ArraySchema
from tacit.data.schema import Schema
from tacit.errors import ConfigError
from tacit.privacy.noise import SeededKeys
from tacit.privacy.plan import PrivacyPlan
from tacit.tasks import Records, load_task
from tacit.tasks.augmented import Layout, augmented, layout_of_arrays, layout_of_columns
from tacit.tasks.weights import read_arrays
from tests.unit.client_sites import experiment, participant, write_site

IMAGES = {"shape": [2, 6, 5], "classes": ["a", "b"]}
SERIES = {"shape": [2, 12], "classes": ["a", "b"]}
VECTORS = {"shape": [7], "classes": ["a", "b"]}
KEYS = SeededKeys(5)
LAYOUTS = {
    "images": Layout((2, 6, 5), (0, 1), (True, True), (0.0, 0.0)),
    "series": Layout((2, 12), (0, 1), (True, True), (0.0, 0.0)),
    "vectors": Layout((7,), tuple(range(7)), (True,) * 7, (0.0,) * 7),
}
STRONG = {
    "flip": 0.5,
    "shift": 2,
    "brightness": 1.0,
    "contrast": 0.5,
    "scale": 0.5,
    "noise": 1.0,
    "mask": 0.4,
}


def generator(seed: int = 0) -> torch.Generator:
    return generator_on(torch.device("cpu"), bytes([seed] * 8))


def of_kind(kind: str, arrays: Any, augment: dict[str, Any]) -> config.Experiment:
    data = {"source": "npz", "path": "data.npz", "arrays": arrays}
    return config.parse(
        {"name": "x", "task": {"kind": kind, "augment": augment}, "data": data}, source="my.toml"
    )


def drawn(records: str, rows: int = 50, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Records, and a view of each."""
    layout = LAYOUTS[records]
    torch.manual_seed(1)
    x = torch.randn(rows, *layout.shape)
    return x, augmented(x, Augment(**settings), layout, generator())


@pytest.mark.parametrize(
    ("arrays", "augment", "problem"),
    [
        (IMAGES, {"scale": 0.1}, "task.augment.scale: is for series, and these are images"),
        (SERIES, {"flip": 0.5}, "task.augment.flip: is for images, and these are series"),
        (VECTORS, {"shift": 1}, "task.augment.shift: is for images and series, and these are vectors"),
        (IMAGES, {"views": 4}, "task: augment.views = 4 would all be alike: say what they differ in"),
        (IMAGES, {"nois": 0.1}, "task.augment.nois: unknown key; did you mean 'noise'?"),
        (IMAGES, {"flip": 1.5}, "task.augment.flip: input should be less than or equal to 1, not 1.5"),
    ],
)
def test_what_does_not_fit_the_records_is_one_line_with_the_key(
    arrays: Any, augment: Any, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        of_kind("array_classification", arrays, augment)
    assert str(caught.value).startswith(f"my.toml: {problem}")


def test_rows_of_a_table_and_text_and_tasks_of_ones_own_have_what_fits_them() -> None:
    assert experiment(task__augment={"noise": 0.1, "mask": 0.1}).task.augment.strengths == {
        "noise": 0.1,
        "mask": 0.1,
    }
    for kind, key, problem in (
        ("tabular", "flip", "is for images, and these are table rows"),
        ("text_classification", "noise", 'there is none for kind = "text_classification"'),
        ("tabular_synthesis", "mask", 'there is none for kind = "tabular_synthesis"'),
        ("array_ranking", "noise", 'there is none for kind = "array_ranking"'),
        ("mine:Task", "noise", "a task of your own makes its views"),
    ):
        with pytest.raises(ConfigError, match=rf"augment\.{key}\b.*{problem}"):
            experiment(task__kind=kind, task__augment={key: 0.1})


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_records_is_refused_by_name_with_the_reason(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"task\.augment: {name}: would put one record into the gradient of another"
    ):
        of_kind("array_classification", IMAGES, {name: 0.2})


@pytest.mark.parametrize("records", LAYOUTS)
@pytest.mark.parametrize("flat", [False, True])
def test_what_is_drawn_for_a_record_touches_that_record_alone(records: str, flat: bool) -> None:
    """Another record in the place of the third changes nothing of the others, nor does what it is flattened to."""
    settings = Augment(**{name: value for name, value in STRONG.items() if records in FITS[name]})
    layout = LAYOUTS[records]
    torch.manual_seed(1)
    x = torch.randn(20, *layout.shape)
    other = x.clone()
    other[3] = 1e3 * torch.randn(layout.shape)
    views = [
        augmented(some.flatten(1) if flat else some, settings, layout, generator()) for some in (x, other, x)
    ]
    assert views[0].shape == (x.flatten(1).shape if flat else x.shape)
    same = (views[0] == views[1]).flatten(1).all(1)
    assert same.tolist() == [i != 3 for i in range(20)]
    assert torch.equal(views[0], views[2]) and not (views[0] == x.view_as(views[0])).flatten(1).all(1).any()
    assert torch.equal(views[0].view_as(x), augmented(x, settings, layout, generator()))


def test_an_image_is_flipped_with_the_chance() -> None:
    x, view = drawn("images", rows=400, flip=0.25)
    flipped = (view == x.flip(-1)).flatten(1).all(1)
    assert ((view == x).flatten(1).all(1) | flipped).all()
    assert 70 < flipped.sum() < 130


@pytest.mark.parametrize("records", ["images", "series"])
def test_what_moves_in_repeats_the_edge(records: str) -> None:
    x, view = drawn(records, rows=600, shift=2)
    padded = torch.nn.functional.pad(x, (2,) * 2 * (x.ndim - 2), mode="replicate")
    size, where = x.shape[-1], []
    for image, out in zip(view, padded, strict=True):
        rows = range(5) if records == "images" else (0,)
        parts = {
            (i, j): out[:, i : i + x.shape[2], j : j + size] if records == "images" else out[:, j : j + size]
            for i in rows
            for j in range(5)
        }
        where += [place for place, part in parts.items() if torch.equal(part, image)]
    assert len(where) == 600  # each is one of the places, and all of them come up
    assert set(where) == {(i, j) for i in (range(5) if records == "images" else (0,)) for j in range(5)}


def test_brightness_and_contrast_and_scale_stay_within_what_is_declared() -> None:
    x, view = drawn("images", brightness=0.5)
    assert torch.allclose(view - x, (view - x)[:, :1, :1, :1].expand_as(x), atol=1e-5)
    assert 0.3 < (view - x).abs().max() <= 0.5 + 1e-5
    x, view = drawn("images", contrast=0.5)
    torch.testing.assert_close(view.mean((2, 3)), x.mean((2, 3)), atol=1e-5, rtol=0)
    ratio = view.std((2, 3)) / x.std((2, 3))
    assert 0.5 - 1e-4 <= ratio.min() < 0.7 and 1.3 < ratio.max() <= 1.5 + 1e-4
    x, view = drawn("series", scale=0.2)
    ratio = view / x
    assert 0.8 - 1e-4 <= ratio.min() < 0.85 and 1.15 < ratio.max() <= 1.2 + 1e-4
    assert (ratio.flatten(1).std(1) < 1e-4).all()


@pytest.mark.parametrize("records", LAYOUTS)
def test_noise_has_the_standard_deviation(records: str) -> None:
    x, view = drawn(records, rows=500, noise=0.3)
    assert float((view - x).std()) == pytest.approx(0.3, rel=0.05) and abs(float((view - x).mean())) < 0.02


def test_a_rectangle_a_stretch_or_columns_are_masked() -> None:
    x, view = drawn("images", mask=0.25)
    hidden = view != x
    assert (view[hidden] == 0).all() and torch.equal(hidden[:, 0], hidden[:, 1])
    assert hidden[:, 0].any(2).sum(1).tolist() == [3] * 50 and hidden[:, 0].any(1).sum(1).tolist() == [2] * 50
    assert hidden[:, 0].flatten(1).sum(1).tolist() == [6] * 50
    x, view = drawn("series", mask=0.25)
    assert ((view != x).sum((1, 2)) == 6).all()
    starts = (view != x)[:, 0].int().argmax(1)
    assert starts.min() == 0 and starts.max() == 9
    x, view = drawn("vectors", rows=400, mask=0.25)
    assert float((view != x).double().mean()) == pytest.approx(0.25, abs=0.03)


def test_an_entry_that_tells_of_an_empty_place_does_so_of_a_masked_one_and_bears_no_noise() -> None:
    columns = {
        "age": {"kind": "numeric", "range": [0.0, 1.0], "indicator": True},
        "ward": {"kind": "categorical", "categories": ["a", "b", "c"]},
        "dose": {"kind": "numeric", "range": [0.0, 1.0]},
    }
    layout = layout_of_columns(Schema.model_validate({"label": "y", "columns": columns}))
    assert layout == Layout(
        (6,), (0, 0, 1, 1, 1, 2), (True, *[False] * 4, True), (0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    )
    x = torch.tensor([[0.5, 0.0, 0.0, 1.0, 0.0, -0.5]]).repeat(300, 1)
    noised = augmented(x, Augment(noise=1.0), layout, generator())
    assert (noised != x).all(0).tolist() == list(layout.measured) and torch.equal(noised[:, 1:5], x[:, 1:5])
    masked = augmented(x, Augment(mask=0.5), layout, generator())
    rows = {tuple(row.tolist()) for row in masked}
    assert rows == {
        (*age, *ward, dose)
        for age in ((0.5, 0.0), (0.0, 1.0))
        for ward in ((0.0, 1.0, 0.0), (0.0,) * 3)
        for dose in (-0.5, 0.0)
    }
    arrays = layout_of_arrays(ArraySchema(shape=(2, 3, 3), classes=("a", "b"), missing="indicator"))
    assert arrays == Layout((4, 3, 3), (0, 1, 0, 1), (True, True, False, False), (0.0, 0.0, 1.0, 1.0))


AUGMENT = {"views": 3, "noise": 0.5, "mask": 0.2}
NUM_FEATURES = 4


def trainer(private: bool = True, **changes: Any) -> LocalTrainer:
    changed = experiment(private, **{"task__augment": AUGMENT, **changes})
    return LocalTrainer(load_task(changed), PrivacyPlan.of(changed), changed)


def records(rows: int = 40) -> Records:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(rows, NUM_FEATURES)).astype(np.float32))
    return Records(x, torch.from_numpy(rng.integers(0, 2, rows)))


def trained(of: LocalTrainer, number: int = 2, seed: int = 5) -> list[float]:
    torch.manual_seed(7)
    start = {name: np.full_like(values, 0.1) for name, values in read_arrays(of.model).items()}
    delta = of.train(start, Job("site", records(), 40), number, SeededKeys(seed))
    return [float(x) for values in delta.values() for x in values.ravel()]


class Spy:
    """Sees what a step is given, and does nothing."""

    engine = "spy"

    def __init__(self) -> None:
        self.batches: list[Records] = []

    def fill(self, batch: Records, normaliser: float, noise: Any) -> None:
        self.batches.append(batch)


def test_views_are_drawn_after_the_records_of_a_step_and_change_neither_which_these_are_nor_how_many() -> (
    None
):
    seen = {}
    for name, augment in (("with", AUGMENT), ("without", {})):
        of = trainer(task__augment=augment)
        spy = of.gradients = Spy()
        trained(of)
        seen[name] = spy.batches
    for views, batch in zip(seen["with"], seen["without"], strict=True):
        assert isinstance(views, Views) and not isinstance(batch, Views)
        assert (views.views, views.num_rows) == (3, batch.num_rows) and torch.equal(
            views.targets, batch.targets
        )
        assert views.features.shape == (batch.num_rows, 3, NUM_FEATURES)
        close = torch.cdist(views.features.mean(1), batch.features).argmin(1)
        assert (
            close == torch.arange(batch.num_rows)
        ).double().mean() > 0.5  # each is a view of its own record
    plans = [PrivacyPlan.of(experiment(task__augment=augment)) for augment in (AUGMENT, {})]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("private", [True, False])
def test_views_follow_from_the_keys_of_the_round_and_from_no_other_generator(private: bool) -> None:
    """A round is the same in a process that has just been started, and leaves torch's generator where it was."""
    went_on, fresh = trainer(private), trainer(private)
    trained(went_on, number=1)
    wanted = trained(fresh)
    before = torch.random.get_rng_state()
    assert trained(went_on) == wanted
    assert torch.equal(torch.random.get_rng_state(), torch.manual_seed(7).get_state())
    del before
    assert trained(fresh, number=3) != wanted and trained(fresh, seed=6) != wanted
    assert trained(trainer(private, task__augment={})) != wanted
    parts = trained(trainer(private, training__max_batch=4))
    np.testing.assert_allclose(parts, wanted, rtol=0, atol=1e-5)


def test_evaluation_sees_the_records_as_they_are() -> None:
    of, plain = trainer(), trainer(task__augment={})
    plain.model.load_state_dict(of.model.state_dict())
    assert record_metrics(of.model, of.task, records()) == record_metrics(plain.model, plain.task, records())


def test_augmented_records_are_not_stacked(tmp_path: Path) -> None:
    changes = {"task__augment": AUGMENT, "simulation__executor": "stacked"}
    stacked = participant(write_site(tmp_path / "north"), experiment(False, **changes)).run
    with pytest.raises(ConfigError, match=r"simulation\.executor: not possible here: a step sees views"):
        executor_for(stacked, 3)


def test_learning_rates_of_their_own_are_not_stacked(tmp_path: Path) -> None:
    changes = {"training__rate_factors": {"0.*": 0.5}, "simulation__executor": "stacked"}
    stacked = participant(write_site(tmp_path / "north"), experiment(False, **changes)).run
    with pytest.raises(
        ConfigError, match="not possible here: parts of the model have learning rates of their own"
    ):
        executor_for(stacked, 3)


@pytest.mark.slow
def test_workers_train_augmented_records_to_the_same_bits(tmp_path: Path) -> None:
    run = participant(write_site(tmp_path / "north"), experiment(task__augment=AUGMENT)).run
    start, jobs = read_arrays(run.trainer.model), [Job(f"site-{i}", records(10 * i), 40) for i in range(3)]
    alone = [run.trainer.train(start, job, 2, KEYS) for job in jobs]
    pooled = WorkersTrainer.of(run, 0.0)
    try:
        pooled.train_ahead(start, jobs, 2, KEYS)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(workers.LocalTrainer, "train", None)  # none is trained here
            ahead = [pooled.train(start, job, 2, KEYS) for job in jobs]
    finally:
        close_pools()
    for got, wanted in zip(ahead, alone, strict=True):
        assert all(np.array_equal(got[name], wanted[name]) for name in wanted)


def test_nothing_is_drawn_for_an_empty_batch() -> None:
    changed = experiment(task__augment=AUGMENT)
    empty = records(0)
    assert Augmentation(changed, load_task(changed)).seen(empty, generator()) is empty
