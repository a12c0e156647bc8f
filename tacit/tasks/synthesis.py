"""Table rows that nobody is: the built-in task that trains a generator of them beside a discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, cast

from tacit import config
from tacit.data.rows import layout
from tacit.errors import ConfigError
from tacit.tasks.regression import ERROR_BOUND
from tacit.tasks.tabular import Tabular
from tacit.tasks.task import Records

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tacit.tasks.models.gan import GAN

ROWS: Final = 128  # made up for each step of the generator


class TabularSynthesis(Tabular):
    """`[task] kind = "tabular_synthesis"`: what `tacit synthesize` writes rows with.

    A record's features are those of the schema with its class behind them, one-hot. Records are judged beside rows of
    their own class, and rows are made up by declared shares of the classes: no count of labels is released.

    Guarantees:
        `metrics` lies in [0, 1] for each record, whatever the outputs, NaN included.
    """

    metric_names: tuple[str, ...] = ("coverage_error",)

    @classmethod
    def of(cls, experiment: config.Experiment) -> Self:
        """See `Tabular.of`; `ConfigError` as well where the generator could not know the bounds of numbers."""
        task = super().of(experiment)
        if task.schema.scaling == "federated":
            raise ConfigError(
                'is not for rows that are made up: declare ranges with scaling = "declared"',
                key="data.schema.scaling",
            )
        shares = task.settings.class_shares
        if shares and len(shares) != task.num_classes:
            raise ConfigError(
                f"has {len(shares)} numbers, and there are {task.num_classes} classes",
                key="task.class_shares",
            )
        return task

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each class among the rows that are made up, in proportion."""
        return self.settings.class_shares or (1.0,) * self.num_classes

    def model(self) -> nn.Module:
        """A fresh model, weights drawn from torch's global generator."""
        from tacit.tasks.models import build_to_make_up
        from tacit.tasks.transfer import started

        made = build_to_make_up(self._model, layout(self.schema), self.num_classes)
        model = cast("GAN", started(made, self.settings.start))
        model.generator.requires_grad_(False)  # an adapter as well
        return model

    def read(self, path: Path, split: str) -> Records:
        """Features (rows, num_features + num_classes) float32 and class indices; raises as `Tabular.read`."""
        import torch
        from torch.nn.functional import one_hot

        features, classes = super().read(path, split)
        return Records(torch.cat([features, one_hot(classes, self.num_classes).to(features)], 1), classes)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The discriminator's: -log D(record) - log(1 - D(made up)), of the two that stand beside one another."""
        from torch.nn.functional import softplus

        return softplus(-outputs[:, 0]) + softplus(outputs[:, 1])

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Per record: `coverage_error`, the mean squared difference to the nearest of 64 made-up rows of its class.

        In declared scales, cut at 4 and divided by 4. A generator that leaves out a kind of record has a large one.
        """
        error = outputs[:, 2].nan_to_num(nan=ERROR_BOUND)
        return {"coverage_error": error.clamp(0.0, ERROR_BOUND) / ERROR_BOUND}

    def follower(self, model: nn.Module) -> nn.Module:
        """The generator; see `Follows`."""
        return cast("GAN", model).generator

    def follower_loss(self, model: nn.Module, draws: torch.Generator) -> Tensor:
        """-log D(made up), the mean over `ROWS` rows (Goodfellow et al. 2014, section 3); see `Follows`."""
        from torch.nn.functional import softplus

        said = cast("GAN", model).judged(self.classes_of(ROWS, draws, model), draws)
        return softplus(-said).mean()

    def classes_of(self, rows: int, draws: torch.Generator, model: nn.Module) -> Tensor:
        """Classes drawn by `shares`, one-hot as the model takes them, shape (rows, num_classes)."""
        import torch
        from torch.nn.functional import one_hot

        drawn = torch.multinomial(torch.tensor(self.shares), rows, replacement=True, generator=draws)
        return one_hot(drawn, self.num_classes).to(next(model.parameters()))
