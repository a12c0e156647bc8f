"""How the rows of a table become lists of items to rank: `[data.arrays.lists]`. Public, as `tacit.data.schema` is."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from tacit.data.schema import Frozen, Text


class ListTable(Frozen):
    """A table (CSV, TSV, Parquet) with a row for each item of each list; a list may have fewer items than are declared.

    Attributes:
        id: column that names the list: a query, a visit, a customer.
        features: columns with numbers of the item, one for each entry of the first axis.
        relevance: column with its relevance; an item where it is empty counts neither in the loss nor in a metric.
        split: column with "train" or "test", the same in all of a list.
        site: column that says which site a list belongs to, likewise; for a simulation.
    """

    id: Text
    features: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]
    relevance: Text
    split: str = ""
    site: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> ListTable:
        names = [self.id, self.relevance, *self.features, *(n for n in (self.split, self.site) if n)]
        if len(set(names)) != len(names):
            raise ValueError("id, features, relevance, split and site must be different columns")
        return self
