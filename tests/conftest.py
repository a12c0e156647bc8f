"""For every test: nothing is reported to anybody, and nothing leaves this machine."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings

from tests import network_guard

# Before anything of Flower or Ray is imported.
os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

settings.register_profile("no-shrinking", phases=(Phase.explicit, Phase.generate))

_asked: list[str] = []
network_guard.watch(_asked.append)


@pytest.fixture(autouse=True)
def asked_outside() -> Iterator[list[str]]:
    """What this test asked for outside, even where the code under test has swallowed the error."""
    _asked.clear()
    yield _asked
    assert _asked == [], "a test must not ask for anything outside this machine"
