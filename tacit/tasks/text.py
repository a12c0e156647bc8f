"""Text: the built-in task that predicts the class of a column's cells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from tacit import config, learning
from tacit.data.preprocessing import labels, selected_rows
from tacit.data.readers import read_table
from tacit.data.schema import Schema, TextColumn
from tacit.data.tokens import tokenised
from tacit.errors import ConfigError, DataError
from tacit.tasks.classification import Classification, check_weights
from tacit.tasks.task import Records

if TYPE_CHECKING:
    from torch import nn


class TextClassification(Classification):
    """`[task] kind = "text_classification"`: a model of `tacit.tasks.models` on the tokens of a text.

    Args:
        schema: label, classes and split.
        text: the column, and its tokens.
        model: which model, and its size.
    """

    def __init__(self, schema: Schema, text: TextColumn, model: learning.Model) -> None:
        self.schema, self.text = schema, text
        self._model = model

    @classmethod
    def of(cls, experiment: config.Experiment) -> Self:
        """The task of an experiment; `ConfigError` where it declares no text, or other classes than weights."""
        columns = experiment.data.columns
        if columns is None or columns.text is None:
            raise ConfigError("says which column has the text, and is missing", key="data.schema.text")
        task = cls(columns, columns.text, experiment.task.model)
        task.settings = check_weights(experiment.task, len(columns.classes))
        return task

    def model(self) -> nn.Module:
        """A fresh model, weights drawn from torch's global generator."""
        from tacit.tasks.models import build_for_text
        from tacit.tasks.transfer import started

        made = build_for_text(self._model, self.text.num_tokens, len(self.schema.classes))
        return started(made, self.settings.start)

    def read(self, path: Path, split: str) -> Records:
        """Tokens (rows, length) int64 and class indices (rows,) int64.

        Raises:
            DataError: the file cannot be used, or has no row to train on.
        """
        import torch

        table = read_table(path, self.schema)
        rows, classes = selected_rows(table, self.schema, split), labels(table, self.schema)
        if split == "train" and not rows.any():
            raise DataError("no row is left for training", path=path)
        tokens = tokenised(table.texts(self.text.column), self.text)
        return Records(torch.from_numpy(tokens[rows]), torch.from_numpy(classes[rows]))
