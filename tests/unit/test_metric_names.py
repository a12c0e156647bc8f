"""Which metrics there are is known before anything runs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from simulations.sweep.metric import check_metric
from tacit import config
from tacit.errors import ConfigError
from tacit.tasks.anomaly import Anomalies
from tacit.tasks.classification import Classification
from tacit.tasks.multilabel import MultiLabel
from tacit.tasks.regression import Regression


@pytest.mark.parametrize("kind", [Classification, MultiLabel, Regression, Anomalies])
def test_a_task_tells_all_metrics_that_its_summary_gives(kind: type[Any]) -> None:
    torch.manual_seed(1)
    targets = {Classification: torch.arange(6) % 2, MultiLabel: torch.arange(12.0).reshape(6, 2) % 3 % 2}
    wanted = targets.get(kind, torch.cat([torch.randn(6, 1), torch.arange(6).reshape(6, 1) % 2], dim=1))
    assert set(kind().summary(torch.randn(6, 2), wanted)) == set(kind.summary_names)


def test_a_metric_of_a_task_of_ones_own_is_refused_only_where_the_task_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = "metric_names = ('hits',)\n def model(self): ...\n def read(self, path, split): ...\n"
    common += " def loss(self, outputs, targets): ...\n def metrics(self, outputs, targets): ...\n"
    summary = " def summary(self, outputs, targets): ...\n"
    text = f"class Plain:\n {common}class Silent(Plain):\n{summary}"
    (tmp_path / "tasks_of_ones_own.py").write_text(text + "class Told(Silent):\n summary_names = ('gini',)\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def check(name: str, *kinds: str) -> None:
        kinds = tuple(f"tasks_of_ones_own:{kind}" for kind in kinds)
        tried = [config.parse({"name": "x", "task": {"kind": kind}}, source="") for kind in kinds]
        check_metric(name, tried, key="--target")

    check("hits", "Plain")
    check("gini", "Plain", "Told")
    check("anything", "Plain", "Silent")
    with pytest.raises(ConfigError, match="no metric 'hit'; there are hits"):
        check("hit", "Plain")
    with pytest.raises(ConfigError, match="no metric 'hits'; there are gini"):
        check("hits", "Told")
