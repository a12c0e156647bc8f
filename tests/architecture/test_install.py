"""What installing Tacit brings, and what its programs load: read from metadata, seen in processes of their own."""

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.architecture.sources import ROOT, text
from tests.architecture.test_names import PYPROJECT

HEAVY = {
    "ray",
    "matplotlib",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "flwr-datasets",
    "datasets",
    "seaborn",
    "optuna",
}
# Of torch's build for CUDA; the build for CPUs asks for none of it.
CUDA = ("nvidia-", "cuda-", "triton")


def lines_of(name: str, extras: frozenset[str] = frozenset()) -> list[str]:
    """What a distribution asks for; ours from pyproject.toml, which may be newer than what is installed."""
    if name != "tacit":
        return importlib.metadata.requires(name) or []
    project = PYPROJECT["project"]
    return [*project["dependencies"], *chain(*(project["optional-dependencies"][extra] for extra in extras))]


def required(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """What a distribution asks for on this machine."""
    for line in lines_of(name, extras):
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            yield requirement


def closure(*extras: str) -> dict[str, Requirement]:
    """Everything that `pip install tacit[extras]` brings, by name; the last requirement that asked for it."""
    found: dict[str, Requirement] = {}
    queue, seen = [("tacit", frozenset(extras))], set()
    while queue:
        name, wanted = queue.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        for requirement in required(name, wanted):
            key = canonicalize_name(requirement.name)
            if not key.startswith(CUDA):
                found[key] = requirement
                queue.append((key, frozenset(requirement.extras)))
    return found


def test_the_base_install_brings_neither_ray_nor_plotting_nor_tables() -> None:
    assert set(closure()) & HEAVY == set()
    assert set(closure()) > {"flwr", "torch", "opacus", "dp-accounting", "grpcio-health-checking"}


def test_what_is_not_in_the_base_is_in_an_extra() -> None:
    """The walk would see it: so the test above can fail."""
    assert set(closure("simulation")) >= {"ray", "matplotlib", "pandas", "pyarrow", "scikit-learn", "optuna"}
    assert set(closure("tables")) & HEAVY == {"pandas", "pyarrow"}


def test_K8_every_distribution_of_the_base_install_has_its_version_in_the_constraints() -> None:
    """So a wheelhouse is the same whenever it is built. setuptools comes with torch, in any version."""
    pinned = {
        canonicalize_name(line.split("==")[0])
        for line in text("constraints.txt").splitlines()
        if "==" in line
    }
    assert set(closure()) - pinned <= {"setuptools", "tacit"}


def test_no_requirement_of_the_base_install_asks_for_the_processor() -> None:
    """`make wheelhouse` reads markers as of the machine that it runs on, for both kinds of machine."""
    asked = {
        f"{name}: {line}"
        for name in ("tacit", *closure())
        for line in lines_of(name)
        if re.search("platform_machine|platform_release|os_name", line) and "extra" not in line
        if not canonicalize_name(Requirement(line).name).startswith(CUDA)
    }
    assert asked == set()


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("tacit.cli client.cli client.site", "torch opacus pandas pyarrow numpy.testing scipy flwr ray"),
        ("client.app", "torch opacus pandas pyarrow scipy dp_accounting ray server strategies"),
        ("client.agent", "torch opacus pandas pyarrow scipy dp_accounting ray server strategies"),
    ],
)
def test_an_idle_client_has_loaded_nothing_that_training_needs(modules: str, unwanted: str) -> None:
    code = f"import json, sys, {', '.join(modules.split())}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert loaded & set(unwanted.split()) == set()
