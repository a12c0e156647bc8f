"""All scenarios that come with Tacit, by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from simulations import source_schemas
from simulations.scenarios import (
    card_fraud,
    chest_xray,
    credit_scoring,
    ecg_beats,
    icu_vitals,
    loss_given_default,
    money_laundering,
    published,
    readmission,
    triage_notes,
    volatility,
)
from simulations.scenarios.story import Story
from tacit import config
from tacit.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pandas import DataFrame

    from simulations.array_sources import ArraySet
    from tacit.data.schema import Schema

SMALL: Final = 400  # records that are enough to see a schema
FOLDER: Final = Path(__file__).parent

STORIES: Final[dict[str, Story]] = {
    story.name: story
    for story in (
        published.HEART_DISEASE,
        published.BREAST_CANCER,
        icu_vitals.STORY,
        ecg_beats.STORY,
        chest_xray.STORY,
        readmission.STORY,
        triage_notes.STORY,
        published.CREDIT_DEFAULT,
        card_fraud.STORY,
        credit_scoring.STORY,
        money_laundering.STORY,
        volatility.STORY,
        loss_given_default.STORY,
    )
}


def story(name: str) -> Story:
    """A scenario by name.

    Raises:
        ConfigError: there is none of that name; lists those that there are.
    """
    if name not in STORIES:
        known = ", ".join(STORIES)
        raise ConfigError(
            f"there is no scenario {name!r}; there are {known}{did_you_mean(name, STORIES)}", key="NAME"
        )
    return STORIES[name]


def experiment_file(name: str) -> Path:
    """The TOML file of a scenario."""
    return FOLDER / f"{story(name).name}.toml"


def described(told: Story, experiment: config.Experiment) -> str:
    """What one record of a scenario has, in a line."""
    data = experiment.data
    if told.arrays:
        arrays = data.arrays or told.arrays(SMALL, experiment.seed).schema
        shape = " x ".join(map(str, arrays.shape))
        return f"numbers {shape}; {' / '.join(arrays.classes) or f'{arrays.outputs} number to predict'}"
    made = told.table(SMALL, experiment.seed)[1] if told.table else getattr(source_schemas, told.name)()
    schema = data.columns or made
    columns = ", ".join(schema.columns) if schema.text is None else f"{schema.text.column} (text)"
    return f"{columns}; label {schema.label}: {' / '.join(schema.classes)}"


def generated_table(data: config.Data, seed: int) -> tuple[DataFrame, Schema]:
    """What `data.generator` makes, rows of a table.

    Raises:
        ConfigError: no scenario of that name makes any.
    """
    make = _generator(data).table
    if make is None:
        raise ConfigError(f"{data.generator!r} makes no table", key="data.generator")
    return make(data.rows, seed)


def generated_arrays(data: config.Data, seed: int) -> ArraySet | None:
    """What `data.generator` makes, arrays; None where it makes rows of a table."""
    make = _generator(data).arrays
    return None if make is None else make(data.rows, seed)


def _generator(data: config.Data) -> Story:
    found = STORIES.get(data.generator)
    if found is None or not (found.table or found.arrays):
        makers = [name for name, story in STORIES.items() if story.table or story.arrays]
        raise ConfigError(
            f"there is no generator {data.generator!r}; there are {', '.join(makers)}"
            f"{did_you_mean(data.generator, makers)}",
            key="data.generator",
        )
    return found
