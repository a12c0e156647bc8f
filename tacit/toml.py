"""TOML text into frozen tables: read, validated, and what is wrong with it said in one line that names the key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from tacit.data.schema import Frozen
from tacit.errors import ConfigError, did_you_mean
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
    """The first problem of a validation error, in the words of the file.

    Args:
        error: of pydantic.
        source: of the tables.
        kind: what they should have been; with it an unknown key is told which one it is like.
    """
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"] if part not in _TAGS)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "unknown key" + did_you_mean(str(problem["loc"][-1]), _keys_at(kind, problem["loc"][:-1]))
    elif problem["type"] == "missing":
        message = "required key is missing"
    elif problem["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, not {_shown(problem['input'])}"
        message += _choice_meant(problem.get("ctx", {}), problem["input"])
    return ConfigError(message, source=source, key=key)


def _choice_meant(context: Mapping[str, Any], value: object) -> str:
    """Of a value that is none of a list: the one that it is like."""
    name = context.get("tag", value)
    choices = re.findall("'([^']*)'", str(context.get("expected_tags", context.get("expected", ""))))
    return did_you_mean(name, choices) if isinstance(name, str) else ""


def _keys_at(kind: type[BaseModel] | None, place: Sequence[int | str]) -> list[str]:
    """The keys that a table at this place may have, and behind their dots those of the tables in it."""
    tables = [kind] if kind else []
    for part in place:  # an index, a tag or a name of the user's own leads to no other table
        tables = [table for one in tables for table in _below(one).get(str(part), ())] or tables
    keys = [item for one in tables for item in _below(one).items()]
    inner = [f"{key}.{name}" for key, found in keys for table in found for name in _below(table)]
    return [key for key, _ in keys] + inner


def _below(table: type[BaseModel]) -> dict[str, list[type[BaseModel]]]:
    """Key -> the tables that its value may be, or may have in it."""
    return {
        field.alias or name: list(_tables(field.annotation)) for name, field in table.model_fields.items()
    }


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _tables(argument)


def _shown(value: object) -> str:
    text = "a table" if isinstance(value, dict) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _os_reason(error: OSError | UnicodeDecodeError) -> str:
    return "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or str(error))
