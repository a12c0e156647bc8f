"""Logs: one line per record, and nothing of an exception that is not ours but where it was."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator

import pytest

from tacit.errors import ConfigError, DataError
from tacit.logs import _CHATTY, _OTHERS, Format, configure, told

CELL = "83.5 years"


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """As they were."""
    loggers = [logging.getLogger(name) for name in (None, *_OTHERS, *_CHATTY)]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
    logging.captureWarnings(False)


@pytest.fixture
def log() -> Callable[..., list[str]]:
    def written(
        form: Format, what: Callable[[logging.Logger], None], level: int = logging.DEBUG
    ) -> list[str]:
        stream = io.StringIO()
        configure(form, level, stream)
        what(logging.getLogger("client.app"))
        return stream.getvalue().splitlines()

    return written


def breaks() -> float:
    return float(CELL)  # its message quotes the text


def failing(how: Callable[[logging.Logger, ValueError], None]) -> Callable[[logging.Logger], None]:
    def what(logger: logging.Logger) -> None:
        try:
            breaks()
        except ValueError as error:
            how(logger, error)

    return what


HOW: dict[str, Callable[[logging.Logger, ValueError], None]] = {
    "with the traceback": lambda logger, error: logger.exception("reading failed"),
    "as an argument": lambda logger, error: logger.error("reading failed: %s", error),
    "as the message": lambda logger, error: logger.error(error),
    "as an argument and with the traceback": lambda logger, error: logger.error("%s", error, exc_info=error),
    "wrapped": lambda logger, error: logger.error("failed", exc_info=chained(error)),
}


def chained(error: Exception) -> Exception:
    try:
        raise RuntimeError(f"because of {error}") from error
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("how", HOW)
def test_K1_of_an_exception_nothing_but_its_type_and_the_places_is_logged(
    log: Callable[..., list[str]], form: Format, how: str
) -> None:
    (line,) = log(form, failing(HOW[how]))
    assert CELL not in line and "83.5" not in line
    assert "Error in " in line and "test_logs.py:" in line


def test_an_error_of_ours_is_logged_in_its_own_words(log: Callable[..., list[str]]) -> None:
    error = ConfigError("must be a number", source="experiment.toml", key="training.rounds")
    (line,) = log("text", lambda logger: logger.error("%s", error))
    assert line.endswith("ConfigError: experiment.toml: training.rounds: must be a number")
    assert told(DataError("empty", path="a.csv", line=3)) == "DataError: a.csv:3: empty"


@pytest.mark.parametrize("form", ["text", "json"])
def test_one_record_is_one_line_so_that_no_message_forges_another(
    log: Callable[..., list[str]], form: Format
) -> None:
    forged = "done\n2030-01-01T00:00:00.000Z INFO tacit: all is well\r\nmore"
    (line,) = log(form, lambda logger: logger.info("%s", forged))
    assert line.count("all is well") == 1


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_terminal_obeys_nothing_in_a_record(log: Callable[..., list[str]], form: Format) -> None:
    (line,) = log(form, lambda logger: logger.info("%s", "run \x1b[2J\x9b1mé\u202e\\"))
    assert line.isprintable() and "u202e" in line and "x1b[2J" in line.replace("u001b", "x1b")


def test_json_has_four_fields_and_the_level_and_time_are_right(log: Callable[..., list[str]]) -> None:
    (line,) = log("json", lambda logger: logger.warning("größer als %d", 5))
    fields = json.loads(line)
    assert set(fields) == {"time", "level", "logger", "message"}
    assert (fields["level"], fields["logger"], fields["message"]) == ("WARNING", "client.app", "größer als 5")
    assert fields["time"].endswith("Z") and line.isascii()


def test_other_libraries_speak_through_us_and_say_warnings_only(log: Callable[..., list[str]]) -> None:
    flower = logging.getLogger("flwr")
    flower.setLevel(logging.INFO)
    flower.addHandler(logging.StreamHandler(io.StringIO()))

    def what(logger: logging.Logger) -> None:
        flower.warning("from Flower")
        logging.getLogger("httpx").info("GET https://example.org/?secret=1")
        logger.debug("too fine")

    assert [line.split(": ", 1)[1] for line in log("text", what, logging.INFO)] == ["from Flower"]
    assert flower.handlers == []


def test_a_warning_of_python_goes_the_same_way(log: Callable[..., list[str]]) -> None:
    def what(logger: logging.Logger) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("old", UserWarning, stacklevel=1)

    assert any("old" in line for line in log("text", what))
