"""Flower finds, validates and loads our apps: from the bundle that a run carries, and from this checkout.

In a process of its own that starts in `/`, as a SuperNode's does: nothing of the checkout is on its path, so what is
found is what is installed.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server import bundle
from tests.architecture.sources import ROOT

# Flower's own use of pathspec.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

# What sites have on their lists. It moves with server.bundle.PYPROJECT and, maybe, with Flower: then say so to sites.
BUNDLE_HASH = "7687a0ce9c405406b400e4fcc538872c7f594928920cc05806b1b3562de4adf8"

LOAD = """
import sys
from pathlib import Path
from flwr.cli.config_utils import load_and_validate
from flwr.supercore.object_ref import load_app
folder = Path(sys.argv[1])
config, warnings = load_and_validate(folder / "pyproject.toml", check_module=True)
for name, reference in sorted(config["tool"]["flwr"]["app"]["components"].items()):
    app = load_app(reference, ValueError, folder)
    print(name, type(app).__module__.split(".")[0], type(app).__name__)
print(sys.modules["server.app"].__file__, sys.modules["client.app"].__file__)
"""


def load_in_another_process(folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Validates and loads the apps of a Flower project, started from `/`, with this checkout installed."""
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-W", "ignore", "-c", LOAD, str(folder)]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)


def test_K9_the_bundle_is_the_one_that_sites_have_on_their_lists(tmp_path: Path) -> None:
    assert bundle.fab_hash(bundle.write(tmp_path)) == BUNDLE_HASH


@pytest.mark.parametrize("project", ["the bundle", "the checkout"])
def test_flower_validates_and_loads_our_apps(project: str, tmp_path: Path) -> None:
    folder = bundle.write(tmp_path / "bundle") if project == "the bundle" else ROOT
    done = load_in_another_process(folder, tmp_path)
    assert done.returncode == 0, done.stderr
    client, server, files = done.stdout.splitlines()
    assert client.split() == ["clientapp", "flwr", "ClientApp"]
    assert server.split() == ["serverapp", "flwr", "ServerApp"]
    assert files == f"{ROOT / 'server/app.py'} {ROOT / 'client/app.py'}"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('serverapp = "server.app:missing"', "Unable to find attribute"),
        ('serverapp = "server.missing:app"', "Unable to load module"),
    ],
)
def test_a_project_whose_apps_are_not_there_is_refused(line: str, reason: str, tmp_path: Path) -> None:
    wrong = bundle.PYPROJECT.replace('serverapp = "server.app:app"', line)
    (tmp_path / "pyproject.toml").write_text(wrong)
    done = load_in_another_process(tmp_path, tmp_path)
    assert done.returncode != 0 and reason in done.stderr
