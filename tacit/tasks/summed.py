"""What rides along with the metric sums: vectors of bounded norm per record; only sums over records travel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from tacit.config import Experiment
from tacit.tasks.cells import PREFIX as CELLS
from tacit.tasks.cells import cells_of
from tacit.tasks.concepts import PREFIX as CONCEPTS
from tacit.tasks.concepts import concepts_of
from tacit.tasks.importance import PREFIX as IMPORTANCE
from tacit.tasks.importance import importance_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tacit.tasks.task import Records, Task


class Summed(Protocol):
    """One such vector: public names and bound, the same at every site."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its coordinates, among the metrics that travel."""
        ...

    @property
    def squared_norm(self) -> int:
        """The most that one record's vector has; of the Euclidean norm, squared."""
        ...

    def sums(self, model: nn.Module, outputs: Tensor, records: Records) -> dict[str, float]:
        """The exact sums over records; `outputs` are the model's for them."""
        ...


def summed_of(experiment: Experiment, task: Task) -> tuple[Summed, ...]:
    """What an experiment asks for; see `cells_of`, `importance_of` and `concepts_of`, and what they raise."""
    parts = (cells_of(experiment, task), importance_of(experiment, task), concepts_of(experiment, task))
    return tuple(part for part in parts if part is not None)


def riders(sums: Mapping[str, float]) -> dict[str, float]:
    """Their coordinates among all metric sums."""
    return {name: value for name, value in sums.items() if name.startswith((CELLS, IMPORTANCE, CONCEPTS))}
