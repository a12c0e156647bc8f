"""server.bundle: the bundle is one constant file without code."""

import io
import os
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from server import bundle

# Flower's own use of pathspec.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


def test_K9_bundle_hash_is_the_same_twice(tmp_path: Path) -> None:
    first = bundle.write(tmp_path / "a")
    before = os.umask(0o077)
    try:
        second = bundle.write(tmp_path / "elsewhere" / "b")
    finally:
        os.umask(before)
    os.utime(second / "pyproject.toml", (0, 0))
    assert bundle.fab_hash(first) == bundle.fab_hash(second)
    assert bundle.fab_hash(bundle.write(first)) == bundle.fab_hash(second)


def test_K9_bundle_carries_no_code_and_asks_for_no_package(tmp_path: Path) -> None:
    fab = build_fab_from_disk(bundle.write(tmp_path))
    assert zipfile.ZipFile(io.BytesIO(fab)).namelist() == ["pyproject.toml", ".info/CONTENT"]
    assert tomllib.loads(bundle.PYPROJECT)["project"]["dependencies"] == []


def test_bundle_and_package_name_the_same_apps_and_the_same_run_config() -> None:
    package = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert tomllib.loads(bundle.PYPROJECT)["tool"]["flwr"]["app"] == package
    assert package["config"] == {"experiment": ""}
