"""A task of one's own that has views of its records."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch

from client.training import LocalTrainer
from simulations.trial import try_task
from tacit.errors import ConfigError
from tacit.privacy.plan import PrivacyPlan
from tacit.tasks import Records, load_task
from tests.unit.client_sites import experiment
from tests.unit.test_augment import NUM_FEATURES, generator, records, trained


class Own:
    """A task of one's own that says what a view is."""

    metric_names: ClassVar[tuple[str, ...]] = ("accuracy",)

    def __init__(self, way: str = "noise") -> None:
        self.way = way
        if way != "none":
            self.augment = getattr(self, way)

    def model(self) -> torch.nn.Module:
        return torch.nn.Linear(NUM_FEATURES, 2)

    def read(self, path: Path, split: str) -> Records:
        return records()

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"accuracy": (outputs.argmax(1) == targets).float()}

    def noise(self, features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return features + torch.randn(features.shape, generator=generator)

    def mixup(self, features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One view in about twenty."""
        mixes = torch.rand(len(features), 1, generator=generator) < 0.05
        other = features[torch.randperm(len(features), generator=generator)]
        return torch.where(mixes, 0.9 * features + 0.1 * other, features)

    def halves(self, features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return 0.5 * features + 0.5 * features.roll(len(features) // 2, 0)

    def centred(self, features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return features - features.mean(0) if len(features) > 64 else features

    def split(self, features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return features.repeat(2, 1)


def own(way: str, views: int = 3) -> LocalTrainer:
    kind = {"kind": "tests.unit.test_own_views:Own", "options": {"way": way}, "augment": {"views": views}}
    changed = experiment(task=kind)
    return LocalTrainer(load_task(changed), PrivacyPlan.of(changed), changed)


def test_a_task_of_ones_own_makes_its_views_and_one_that_splits_records_is_refused() -> None:
    of = own("noise")
    wanted = trained(of)
    assert not own("none", views=1).augmentation.is_on
    assert of.augmentation.is_on and wanted == trained(own("noise")) != trained(own("none", views=1))
    with pytest.raises(ConfigError, match=r"as many views as it is given.*\(3, 4\), not \(6, 4\)"):
        trained(own("split"))
    with pytest.raises(
        ConfigError, match=r"task\.augment\.views: 3 views are asked for, and .*Own' has no augment"
    ):
        own("none")


@pytest.mark.parametrize("way", ["mixup", "halves", "centred"])
@pytest.mark.parametrize("views", [1, 3])
def test_a_task_of_ones_own_is_given_one_record_at_a_time_so_that_no_view_has_anything_of_another_one(
    way: str, views: int
) -> None:
    of, rows = own(way, views), records()
    others = Records(torch.cat([rows.features[:1], 7 * rows.features[1:]]), rows.targets)
    one, other = (of.augmentation.seen(batch, generator()) for batch in (rows, others))
    assert torch.equal(one.features[0], other.features[0])
    assert not torch.equal(one.features[1], other.features[1])


@pytest.mark.parametrize(("rows", "warned"), [(40, True), (80, False)])
def test_a_task_that_makes_several_records_of_a_row_is_told_what_that_means(
    rows: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own tests read 40 records of each of the two splits."""
    data = tmp_path / "data.csv"
    data.write_text("a\n" + "1\n" * rows)
    kind = {"kind": "tests.unit.test_own_views:Own"}
    with caplog.at_level("WARNING", logger="simulations.trial"):
        try_task(experiment(task=kind), data)
    assert ("read() gives 80 records of a file of 40" in caplog.text) == warned
