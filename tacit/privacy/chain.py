"""An append-only sequence of records as bytes: each names the hash of the one before. No I/O.

One record is one line: canonical JSON whose last key is the SHA-256 of everything before it. A write that
was cut short (a crash, a full disk) leaves bytes without a record; they stay where they are, and the next
record is put behind them, after a separator that JSON text cannot contain, and names their hash.

Guarantees:
    A changed byte anywhere in a sequence whose length is known is found, and its line is named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tacit.errors import StorageError

GENESIS: Final = "0" * 64  # what the first record names as the one before

_SEPARATOR: Final = b"\x1e"
_HASH_KEY: Final = b',"hash":"'
_HASH_BYTES: Final = len(_HASH_KEY) + 64 + len(b'"}')


@dataclass(frozen=True)
class Chain:
    """What the bytes of a sequence say.

    Attributes:
        records: fields of each record, with "sequence" from 1, "previous", "torn" and "hash".
        torn: what cut-short writes left behind the last record; empty if nothing.
        torn_line: the line where `torn` starts, from 1.
        num_torn: writes cut short, anywhere in the sequence.
    """

    records: tuple[dict[str, Any], ...]
    torn: bytes
    torn_line: int
    num_torn: int


def encode(
    fields: Mapping[str, Any], sequence: int, previous: str, torn: bytes
) -> tuple[bytes, dict[str, Any]]:
    """One record as the bytes to append, and its fields.

    Args:
        fields: what the record says; JSON values.
        sequence: its number, from 1.
        previous: hash of the record before, or `GENESIS`.
        torn: what stands behind that record already.
    """
    record = {**fields, "sequence": sequence, "previous": previous, "torn": _torn_hash(torn)}
    content = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    digest = hashlib.sha256(content).hexdigest()
    line = content[:-1] + _HASH_KEY + digest.encode() + b'"}\n'
    return (_SEPARATOR if torn else b"") + line, {**record, "hash": digest}


def decode(data: bytes, source: Path) -> Chain:
    """Reads a sequence and checks each link.

    Raises:
        StorageError: a line that is neither a record nor closed by one; names `source` and the line.
    """
    records: list[dict[str, Any]] = []
    previous, torn, torn_line, num_torn = GENESIS, b"", 0, 0
    *lines, rest = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if torn and not line.startswith(_SEPARATOR):
            raise damaged(source, torn_line)
        before, _, body = (torn + line).rpartition(_SEPARATOR)
        record = _record(body, len(records) + 1, previous, before)
        if record is None:
            torn, torn_line = torn + line + b"\n", torn_line or number
            continue
        num_torn += _num_torn(before)
        records.append(record)
        previous, torn, torn_line = record["hash"], b"", 0
    torn, torn_line = torn + rest, torn_line or len(lines) + 1
    return Chain(tuple(records), torn, torn_line, num_torn + _num_torn(torn))


def damaged(source: Path, line: int) -> StorageError:
    """The error of a line that was changed, cut or removed after it was written."""
    return StorageError(
        f"{source}:{line}: a record is damaged or missing here: the file was changed, cut or restored from a "
        "backup. Put back the newest copy of it and of its .head file. If there is none, it is not known "
        "what was spent: release nothing more about these records"
    )


def _record(body: bytes, sequence: int, previous: str, torn: bytes) -> dict[str, Any] | None:
    """The fields of a line that is the record expected here, else None."""
    content, tail = body[:-_HASH_BYTES] + b"}", body[-_HASH_BYTES:]
    digest = hashlib.sha256(content).hexdigest()
    if tail != _HASH_KEY + digest.encode() + b'"}':
        return None
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return None
    links = {"sequence": sequence, "previous": previous, "torn": _torn_hash(torn)}
    if not isinstance(record, dict) or any(record.get(key) != value for key, value in links.items()):
        return None
    return {**record, "hash": digest}


def _torn_hash(torn: bytes) -> str:
    return hashlib.sha256(torn).hexdigest() if torn else ""


def _num_torn(torn: bytes) -> int:
    """Writes in a run of bytes that are no record; each but the first began with a separator."""
    return torn.count(_SEPARATOR) + 1 if torn else 0
