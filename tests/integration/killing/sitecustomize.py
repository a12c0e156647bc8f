"""Loaded by every Python that a test starts with this folder on its path: a `ServerApp` kills itself at a named point.

The points still to come are files in TACIT_TEST_POINTS, the first of which counts; its name begins with the number of
rounds that are complete then, and may end with a dot and anything.
"""

import os
import signal
import sys
from pathlib import Path


def of_a_checkpoint(folder):
    """Whether the names in it are those of a checkpoint that is half written, and not of any other file."""
    return folder.name == ".unfinished"


# name -> module, class and method, whether before it, after it or within what it writes, and what else must hold: the
# value of one of its arguments, or a function of all of them
POINTS = {
    "cohort-drawn": ("strategies.rounds", "Rounds.draw", "after", None),
    "messages-made": ("strategies.rounds", "Rounds.configure", "after", None),
    "attempt-noted": ("server.sums", "SumFile._changed", "after", None),
    "before-shares": ("strategies.secure_grid", "SecureAggregationGrid._request", "before", "tacit1"),
    "before-vectors": ("strategies.secure_grid", "SecureAggregationGrid._request", "before", "tacit2"),
    "before-confirmations": ("strategies.secure_grid", "SecureAggregationGrid._request", "before", "tacit3"),
    "before-openings": ("strategies.secure_grid", "SecureAggregationGrid._request", "before", "tacit4"),
    "receipt-kept": ("server.receipts", "ReceiptFile._keep", "after", None),
    "sum-known": ("strategies.rounds", "Rounds.collect", "after", None),
    "model-made": ("strategies.rounds", "Rounds.aggregate", "after", None),
    "checkpoint-half": ("server.checkpoint", "sync_folder", "before", of_a_checkpoint),
    "checkpoint-whole": ("server.state", "RunState._append_round", "before", None),
    "round-noted": ("server.state", "RunState._prune", "before", None),
    "before-result": ("server.state", "RunState.finish", "before", None),
}


def arm(folder: Path, points: dict = POINTS) -> None:
    """Makes the next point deadly."""
    left = sorted(folder.iterdir())
    if not left:
        return
    number, _, name = left[0].name.partition("-")
    module, path, when, argument = points[name.partition(".")[0]]
    __import__(module)
    owner = sys.modules[module]
    *classes, attribute = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    original = getattr(owner, attribute)

    def is_time(arguments: tuple) -> bool:
        rounds = Path(os.environ["TACIT_STATE"]) / "rounds.jsonl"
        done = rounds.read_bytes().count(b"\n") if rounds.exists() else 0
        if done < int(number) or argument is None:
            return done >= int(number)
        return argument(*arguments) if callable(argument) else argument in arguments

    def die() -> None:
        left[0].unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    def deadly(*arguments, **named):
        now = is_time(arguments)
        if now and when == "before":
            die()
        if now and when == "within":
            original(*arguments[:-1], arguments[-1][: len(arguments[-1]) // 2])
            die()
        result = original(*arguments, **named)
        if now:
            die()
        return result

    setattr(owner, attribute, deadly)


if "TACIT_TEST_POINTS" in os.environ and any("flwr-serverapp" in word for word in sys.orig_argv[:3]):
    arm(Path(os.environ["TACIT_TEST_POINTS"]))
