"""The wheel carries exactly our packages and their data, and works from a folder that has nothing else of ours."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.architecture.sources import PACKAGES, ROOT, project_files, text
from tests.architecture.test_names import PYPROJECT

pytest.importorskip("setuptools", minversion="77")

IMPORTS = """
import importlib, importlib.resources, pkgutil, sys
for package in sys.argv[2:]:
    top = importlib.import_module(package)
    assert top.__file__.startswith(sys.argv[1]), top.__file__
    for module in pkgutil.walk_packages(top.__path__, package + "."):
        importlib.import_module(module.name)
for package, suffix in {"simulations.scenarios": ".toml", "tacit.report": ".j2"}.items():
    assert any(file.name.endswith(suffix) for file in importlib.resources.files(package).iterdir()), package
"""


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-index", "--quiet"]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools builds beside the sources, with a stray file that must stay out."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in project_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    (source / "client" / "secret.key").write_text("not for anybody")
    pip("wheel", str(source), "--no-build-isolation", "--wheel-dir", str(out))
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_carries_exactly_our_packages_and_their_data(wheel: Path) -> None:
    data = PYPROJECT["tool"]["setuptools"]["package-data"]
    patterns = [f"{package.replace('.', '/')}/{rule}" for package, rules in data.items() for rule in rules]
    ours = [Path(name) for name in project_files() if name.split("/")[0] in PACKAGES]
    expected = {str(name) for name in ours if name.suffix == ".py" or any(map(name.match, patterns))}
    carried = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert carried == expected
    assert expected > {
        "tacit/py.typed",
        "tacit/report/report.html.j2",
        "simulations/scenarios/breast_cancer.toml",
    }


def test_no_file_of_a_package_is_left_behind(wheel: Path) -> None:
    """Data that is in the repository but in no list would be missing at a user's."""
    ours = {name for name in project_files() if name.split("/")[0] in PACKAGES}
    assert ours - set(zipfile.ZipFile(wheel).namelist()) == set()


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    content = zipfile.ZipFile(wheel)
    names = {Path(name).name for name in content.namelist() if ".dist-info/" in name}
    assert names >= {"LICENSE", "METADATA", "entry_points.txt"}
    (metadata,) = (content.read(name).decode() for name in content.namelist() if name.endswith("METADATA"))
    assert "\nName: tacit\n" in metadata and "\nRequires-Dist: flwr==1.41.0\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert text("README.md").splitlines()[0] in metadata


def test_every_module_is_imported_from_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    pip("install", "--target", str(tmp_path), str(wheel))
    found = sorted(name.name for name in tmp_path.iterdir() if not name.name.endswith(".dist-info"))
    assert found == sorted([*PACKAGES, "bin"])
    command = [sys.executable, "-W", "ignore", "-c", IMPORTS, str(tmp_path), *PACKAGES]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
