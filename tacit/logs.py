"""Logs on stderr, as text for people or as JSON for a collector.

Of an error that is none of ours only the type and the places are written: its text may quote a cell of a record, a
key or a path that somebody else chose. That is a second net; what we log ourselves has no secret in the first place.

Guarantees:
    Of an exception, nothing but its type and the places that it came through is logged, unless it is one of ours.
    One record is one line, and a terminal that shows it obeys nothing in it.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal, TextIO

from tacit.errors import TacitError

Format = Literal["text", "json"]
ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
# They bring handlers of their own, or say on INFO what nobody asked.
_OTHERS: Final = ("flwr", "uvicorn", "uvicorn.error", "uvicorn.access")
_CHATTY: Final = ("httpx", "httpcore", "urllib3", "grpc", "uvicorn.access", "opacus", "asyncio")


def told(error: BaseException) -> str:
    """An exception in one line: our own text, or the type and places of another's, the innermost first."""
    if isinstance(error, TacitError):
        return f"{type(error).__name__}: {error}"
    frames = reversed(traceback.extract_tb(error.__traceback__))
    places = " <- ".join(f"{frame.filename}:{frame.lineno}" for frame in frames)
    return f"{type(error).__name__} in {places}" if places else type(error).__name__


def visible(text: str) -> str:
    """A text that others may have chosen, for a terminal: what it would obey is spelled out, as in Python."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class _Formatter(logging.Formatter):
    """What both forms have in common."""

    def formatException(self, ei: ExceptionInfo) -> str:  # noqa: N802 - the name is logging's
        return told(ei[1]) if ei[1] is not None else ""

    def message_of(self, record: logging.LogRecord) -> str:
        """The message with its exception, if any. Arguments that are exceptions are told as exceptions are."""
        arguments = record.args
        if isinstance(arguments, tuple):
            arguments = tuple(told(a) if isinstance(a, BaseException) else a for a in arguments)
        text = str(record.msg) if not isinstance(record.msg, BaseException) else told(record.msg)
        message = text % arguments if arguments else text
        if record.exc_info and record.exc_info[1] is not None:
            message = f"{message}: {told(record.exc_info[1])}"
        return message


class TextFormatter(_Formatter):
    """`2030-01-31T12:00:00Z INFO client.app: message`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a line feed in a message is written as `\\n`, so that no message forges a second one."""
        message = visible(self.message_of(record).replace("\\", "\\\\"))
        return f"{_time(record)} {record.levelname} {record.name}: {message}"


class JsonFormatter(_Formatter):
    """One object to a line: time, level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of ASCII."""
        fields = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": self.message_of(record),
        }
        return json.dumps(fields)


def configure(form: Format = "text", level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Sends all logs of the process to stderr in one form; called by a command, once, before it works.

    Args:
        form: "text" or "json".
        level: of our own loggers; other libraries say warnings only.
        stream: instead of stderr.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _OTHERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return f"{moment.isoformat(timespec='milliseconds').removesuffix('+00:00')}Z"
