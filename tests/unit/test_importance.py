"""Which columns a model goes by: shares of single records, and the sum of them that travels."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.evaluation import record_metrics
from tacit import config
from tacit.encoding import encoder_of, metric_sensitivity
from tacit.errors import ConfigError, MissingExtra
from tacit.privacy.plan import PrivacyPlan
from tacit.report.rows import learned_importance
from tacit.tasks import Records, load_task
from tacit.tasks.importance import Importance, importance_of
from tacit.tasks.summed import summed_of
from tacit.tasks.surrogate import WIDTH, coefficients, surrogates
from tests.unit.trained_runs import TABLE, arrays_experiment

pytest.importorskip("captum")
METHODS = ("saliency", "integrated_gradients", "occlusion", "shap", "lime")
# Of three columns: a number, a category of two names, a number.
THREE = Importance("", ("a", "b", "c"), (0, 1, 1, 2), True)


def of(method: str) -> Importance:
    return Importance(method, THREE.columns, THREE.blocks, THREE.classes)


def linear(*weights: float) -> nn.Module:
    model = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * 4, list(weights)]))
    return model


def experiment(**evaluation: Any) -> config.Experiment:
    sites = [{"label": f"s{i}", "rows": 200} for i in range(3)]
    budget = {"record": {"epsilon": 5.0, "delta": 1e-4, "metrics_share": 0.2}}
    tables = {**TABLE, "privacy": budget, "evaluation": {"metrics": True, **evaluation}}
    return config.parse({**tables, "federation": {"sites": sites}}, source="")


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_model_goes_by_its_columns_as_its_weights_say(method: str) -> None:
    features = torch.tensor([[1.0, 1.0, 0.0, 1.0], [2.0, 0.0, 1.0, 0.5]])
    shares = of(method).shares(linear(3.0, 4.0, 2.0, 2.0), features)  # the second class is predicted
    sizes = torch.tensor([[3.0, 4.0, 2.0], [6.0, 2.0, 1.0]])  # weight times value
    if method == "saliency":
        sizes = torch.tensor([[3.0, 6.0, 2.0]] * 2)  # weights, summed over the category's two places
    assert torch.allclose(shares, (sizes / sizes.sum(1, keepdim=True)).double(), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e30, float("nan"), float("inf")])
def test_one_records_shares_have_a_norm_of_at_most_1_whatever_the_model_says_of_it(
    method: str, scale: float
) -> None:
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    model = nn.Sequential(linear(scale, 2.0, -scale, 0.1), nn.Tanh())
    shares = of(method).shares(model, features)
    assert shares.shape == (6, 3) and bool(shares.isfinite().all()) and bool((shares >= 0).all())
    assert float(shares.norm(dim=1).max()) <= 1 + 1e-9
    assert torch.equal(shares, of(method).shares(model, features))  # no luck in it


def test_sums_travel_with_the_metrics_and_leave_the_model_as_it_was() -> None:
    settings = experiment(explain="integrated_gradients", curves=True)
    task, plan = load_task(settings), PrivacyPlan.of(settings)
    cells, importance = summed_of(settings, task)
    assert isinstance(importance, Importance) and importance.columns == tuple(
        TABLE["data"]["schema"]["columns"]
    )
    names = encoder_of(settings, plan, task, {"w": np.zeros(3, dtype=np.float32)}).layout.metrics
    assert names == ("accuracy", "loss", "records", *cells.names, *importance.names)
    assert metric_sensitivity(task, cells, importance) == pytest.approx(5**0.5)
    model, width = task.model(), task.num_features  # type: ignore[attr-defined]
    features = torch.randn(30, width, generator=torch.Generator().manual_seed(1))
    state = torch.random.get_rng_state()
    sums = record_metrics(model, task, Records(features, torch.zeros(30, dtype=torch.long)), (importance,))
    assert sum(sums[name] for name in importance.names) == pytest.approx(30)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_the_server_learned_last_is_told_with_its_noise() -> None:
    settings = experiment(explain="saliency")
    plan, importance = PrivacyPlan.of(settings), importance_of(settings, load_task(settings))
    assert importance is not None
    counts = dict(zip(importance.names, (60000.0, -3.0, 30000.0, 10000.0), strict=True))
    rows = [{"round": 4, "counts": counts, "survivors": ["a"] * 9}, {"round": 5, "survivors": ["a"]}]
    found = learned_importance(rows, settings, plan)
    assert found is not None and found.round == 4 and found.shares == pytest.approx((0.6, 0.0, 0.3, 0.1))
    each = (plan.metrics_noise_multiplier or 0) * metric_sensitivity(load_task(settings), importance)
    assert found.noise == pytest.approx(3 * each / 99997)
    drowned = [{**rows[0], "counts": {name: value / 1000 for name, value in counts.items()}}]
    nothing = learned_importance(drowned, settings, plan)
    assert nothing is not None and nothing.shares == ()  # it was released, which the statement says
    assert learned_importance(rows[1:], settings, plan) is None
    assert learned_importance(rows, experiment(), plan) is None


@pytest.mark.parametrize(("model", "shape"), [("mlp", [2, 6]), ("cnn1d", [2, 16])])
def test_arrays_are_told_of_by_channel(model: str, shape: list[int]) -> None:
    tables = arrays_experiment("regression", model, shape=shape, missing="indicator")
    settings = config.parse({**tables, "evaluation": {"metrics": True, "explain": "occlusion"}}, source="")
    task = load_task(settings)
    importance = importance_of(settings, task)
    assert importance is not None and importance.columns == ("channel 0", "channel 1")
    torch.manual_seed(1)
    features = torch.randn(5, 24) if model == "mlp" else torch.randn(5, 4, 16)
    shares = importance.shares(task.model(), features)
    assert shares.shape == (5, 2) and torch.allclose(shares.sum(1), torch.ones(5).double())


@pytest.mark.parametrize("columns", [1, 3, 9])
def test_the_surrogate_is_the_one_that_captum_fits_to_the_same_samples(columns: int) -> None:
    pytest.importorskip("sklearn")
    from captum._utils.models.linear_model import SkLearnLinearRegression
    from captum.attr import LimeBase

    torch.manual_seed(columns)
    model = nn.Sequential(nn.Linear(columns, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()
    features = torch.randn(2, columns).double()
    kept, _ = surrogates(columns)
    assert bool((kept[0] == 1).all()) and bool((kept[1:] == 0).any(1).all())

    def weight(original: Tensor, perturbed: Tensor, left: Tensor, **_: Any) -> float:
        distance = 1 - torch.cosine_similarity(left, torch.ones_like(left), dim=-1)
        return float(torch.exp(-(distance**2) / (2 * WIDTH**2)))

    def samples(original: Tensor, **_: Any) -> Iterator[Tensor]:
        yield from kept[:, None]

    lime = LimeBase(
        model, SkLearnLinearRegression(), weight, samples,
        perturb_interpretable_space=True,
        from_interp_rep_transform=lambda left, original, **_: original * left,
        to_interp_rep_transform=None,
    )  # fmt: skip
    found = coefficients(model, features, tuple(range(columns)), columns)
    for row, ours in zip(features, found, strict=True):
        theirs = lime.attribute(row[None], n_samples=len(kept))
        torch.testing.assert_close(ours, theirs[0].double(), atol=1e-4, rtol=1e-3)


def test_a_site_without_captum_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    with pytest.raises(MissingExtra, match=r"tacit\[explain\]"):
        of("saliency").shares(linear(1, 1, 1, 1), torch.ones(1, 4))


def test_what_cannot_be_explained_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.explain goes with the metrics"):
        experiment(metrics=False, explain="shap")
    with pytest.raises(ConfigError, match=r"evaluation\.explain"):
        experiment(explain="anchors")
    tables = experiment(explain="shap").model_dump(mode="json", by_alias=True, exclude_none=True)
    with pytest.raises(ConfigError, match="exclude each other"):
        config.parse({**tables, "privacy": {"client": {"epsilon": 2.0, "delta": 1e-2}}}, source="")
    own = config.parse({**tables, "task": {"kind": "tests.unit.image_task:Images"}}, source="")
    with pytest.raises(ConfigError, match="is for the built-in tasks"):
        importance_of(own, load_task(own))
