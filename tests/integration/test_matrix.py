"""The table of docs/models.md, cell by cell: a short training, or a refusal with its reason."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from simulations import workers
from simulations.cohort import CohortExecutor
from simulations.stacked import train_ahead
from tacit.errors import ConfigError
from tacit.learning import Model
from tests.matrix import FAMILIES, PAGE, PROMISES, page, refusal
from tests.unit.small_federation import Federation

CELLS = [(name, promise) for name in FAMILIES for promise in PROMISES]
in_each_cell = pytest.mark.parametrize(("name", "promise"), CELLS)
Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model after the serial run of a cell, over messages and through the cryptographic sum."""

    @cache
    def trained(name: str, promise: str) -> tuple[Federation, Arrays, Arrays]:
        folder = tmp_path_factory.mktemp("cell")
        text = FAMILIES[name].text(name, folder)
        federation = Federation(folder, PROMISES[promise], "simulation.executor=serial", text=text)
        return federation, dict(federation.initial()), dict(federation.run(folder / "run"))

    return trained


def other(folder: Path, name: str, promise: str, way: str, **options: Any) -> Arrays:
    """The same cell by another executor, over the ideal sum: the same integers without the cryptography."""
    text = FAMILIES[name].text(name, folder)
    ideal = "secure_aggregation.engine=ideal"
    federation = Federation(folder, PROMISES[promise], ideal, f"simulation.executor={way}", text=text)
    return dict(federation.run(folder / "run", **options))


def assert_same(got: Arrays, wanted: Arrays) -> None:
    assert set(got) == set(wanted)  # a file has them in another order
    for name, values in wanted.items():
        np.testing.assert_allclose(got[name], values, atol=1e-3, rtol=0, err_msg=name)


@in_each_cell
def test_it_trains_serially_through_the_secure_sum(name: str, promise: str, serial: Any) -> None:
    _, initial, trained = serial(name, promise)
    assert all(np.isfinite(values).all() for values in trained.values())
    assert any((trained[array] != values).any() for array, values in initial.items())


@in_each_cell
def test_it_is_stacked_to_the_same_model_or_refused(
    name: str, promise: str, serial: Any, tmp_path: Path
) -> None:
    if reason := refusal(name, "stacked"):
        with pytest.raises(ConfigError, match=rf"simulation\.executor: .*{reason}"):
            other(tmp_path, name, promise, "stacked", ahead=train_ahead)
        return
    with CohortExecutor() as cohorts:
        assert_same(other(tmp_path, name, promise, "stacked", executor=cohorts), serial(name, promise)[2])


@pytest.mark.slow
@in_each_cell
def test_workers_train_it_to_the_same_model(
    name: str, promise: str, serial: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "num_workers", lambda: 2)
    with CohortExecutor() as cohorts:
        assert_same(other(tmp_path, name, promise, "workers", executor=cohorts), serial(name, promise)[2])


@pytest.mark.slow
@pytest.mark.ray
@in_each_cell
def test_ray_trains_it_to_the_same_model(
    name: str, promise: str, serial: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulations import ray_engine

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    federation, _, trained = serial(name, promise)
    ray_engine.run(
        federation.experiment.to_toml(), state=tmp_path, sites=federation.sites, num_clients=4, timeout=240
    )
    assert_same(load_file(tmp_path / "model.safetensors"), trained)


def test_the_table_has_every_family_and_the_page_has_the_table() -> None:
    """After a change of the table: python -m tests.matrix."""
    names = {family.model or name for name, family in FAMILIES.items()}
    assert names == set(Model.model_fields["name"].annotation.__args__)  # type: ignore[union-attr]
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text
