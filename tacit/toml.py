"""TOML text into frozen tables: read, validated, and what is wrong with it said in one line that names the key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from tacit.data.schema import Frozen
from tacit.errors import ConfigError
from tacit.shifts import SHIFT_KINDS

Kind = TypeVar("Kind", bound=Frozen)
_TAGS: Final = (
    "numeric",
    "categorical",
    *SHIFT_KINDS,
)  # pydantic puts them into a problem's place; no key is one


def load_as(kind: type[Kind], path: Path) -> Kind:
    """Like `load`, for any other file that is one such table."""
    return validated(kind, read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; `ConfigError` where it cannot be read or is none."""
    return parse_toml(read_text(path), str(path))


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """The tables of a TOML text; `ConfigError` where it is none."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also for a number or a nesting without end
        raise ConfigError(f"not valid TOML: {error}", source=source, key=_key_at(text, error)) from None


def read_text(path: Path) -> str:
    """The text of a file; `ConfigError` where it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {_os_reason(error)}", source=path) from None


def validated(kind: type[Kind], tables: Mapping[str, Any], source: str) -> Kind:
    """The tables as one such object; `ConfigError` names the first offending key."""
    try:
        return kind.model_validate(tables)
    except ValidationError as error:
        raise first_problem(error, source, kind) from None


def override(tables: dict[str, Any], text: str) -> str:
    """Applies one `a.b.c=value` and returns the key; the value is TOML, or else a plain string.

    `privacy=none` removes a table.
    """
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"{text!r} is not key=value", source="--set")
    target = tables
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError("is not a table", source="--set", key=part)
    if value.strip() == "none":
        target.pop(parts[-1], None)
    else:
        target[parts[-1]] = toml_value(value)
    return ".".join(parts)


def toml_value(text: str) -> Any:
    """What a value on a command line means: TOML, or else plain text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _key_at(text: str, error: Exception) -> str:
    """What stands before the `=` in the line that a TOML error names; "" where it names none."""
    found = re.search(r"at line (\d+)", str(error))
    line = text.split("\n")[int(found[1]) - 1] if found else ""
    return line.partition("=")[0].strip()[:60]


def first_problem(error: ValidationError, source: str, kind: type[BaseModel] | None = None) -> ConfigError:
    """The first problem of a validation error, in the words of the file; `kind` is what it should have been."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"] if part not in _TAGS)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        *place, name = problem["loc"]
        near = get_close_matches(str(name), _keys(kind, place) if kind else (), n=1)
        message = f"unknown key; did you mean {near[0]}?" if near else "unknown key"
    elif problem["type"] == "missing":
        message = "required key is missing"
    elif problem["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, not {_shown(problem['input'])}"
    return ConfigError(message, source=source, key=key)


def _keys(kind: type[BaseModel], place: Sequence[object]) -> set[str]:
    """The keys of the table at that place."""
    tables = [kind]
    for part in place:
        fields = [f for t in tables for name, f in t.model_fields.items() if part in (name, f.alias)]
        if fields:  # else it is a tag or an index
            tables = [table for field in fields for table in _tables_in(field.annotation)]
    return {field.alias or name for table in tables for name, field in table.model_fields.items()}


def _tables_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for part in get_args(annotation) for table in _tables_in(part)]


def _shown(value: object) -> str:
    text = "a table" if isinstance(value, dict) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _os_reason(error: OSError | UnicodeDecodeError) -> str:
    return "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or str(error))
