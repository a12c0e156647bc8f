"""For every test: nothing is reported, nothing leaves this machine, and neither luck nor another test decides."""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings

from tests import network_guard

# Before anything of Flower, Ray or torch is imported.
os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # The models of tests are so small that threads wait for one another: without, they train twice as fast.
    "OMP_NUM_THREADS": "1",
}

# The same examples in every run, so that a red test is red because of a change. `--hypothesis-profile explore` looks
# for new ones. No deadlines: they measure the machine.
settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("fixed")
settings.register_profile("no-shrinking", phases=(Phase.explicit, Phase.generate))  # the rest as in "fixed"

_asked: list[str] = []
network_guard.watch(_asked.append)


@pytest.fixture(autouse=True)
def asked_outside() -> Iterator[list[str]]:
    """What this test asked for outside, even where the code under test has swallowed the error."""
    _asked.clear()
    yield _asked
    assert _asked == [], "a test must not ask for anything outside this machine"


@pytest.fixture(autouse=True)
def own_logs() -> Iterator[None]:
    """Puts the root logger back: a command that ran in this process has given it a stream that is closed by now."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
