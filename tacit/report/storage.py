"""Writes the files of a report, each of them whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from tacit.durable import usable, write_file
from tacit.errors import StorageError
from tacit.report.record import Part, RunRecord


def write_json(record: Part, path: Path) -> None:
    """Writes a record: report.json, audit.json.

    Guarantees:
        The file holds no NaN and no Infinity.

    Raises:
        StorageError: the folder cannot be written.
    """
    content = record.model_dump(mode="json")
    write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def read_json(path: Path) -> RunRecord:
    """Reads a report.json.

    Raises:
        StorageError: no such file, or not a record of this version.
    """
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path}: cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StorageError(f"{path}: not a run record: {where}: {first['msg']}") from None


def write_text(text: str, path: Path) -> None:
    """Writes a text file, mode 0600: an exact report is as confidential as its rows.

    Guarantees:
        After a crash at any moment `path` is the old file or the new one.

    Raises:
        StorageError: the folder cannot be written.
    """
    with usable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text.encode())
