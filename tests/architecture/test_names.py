"""Names, lengths and the files around the code: what the style page asks for and a reader would trip over."""

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.architecture.sources import PACKAGES, documented, modules, project_files, text, tree
from tests.architecture.test_imports import imported

TESTS = [name for name in project_files() if name.startswith("tests/") and name.endswith(".py")]
ALL = [*modules(), *TESTS]
PYPROJECT = tomllib.loads(text("pyproject.toml"))
SECTIONS = {"Args", "Attributes", "Examples", "Guarantees", "Raises", "Returns", "Yields"}
MAX_FILE, MAX_FUNCTION = 400, 60
# In the docstring of a longer file or function: the reason.
LONGER = re.compile(r"Longer than \d+ lines because \w+")
NAMES_NOTHING = re.compile(r"(?:^|_)(?:utils?|helpers?|common|managers?)(?:$|_)")
MACHINE = {
    "a path of one machine": r"(?<![\w.~-])/(?:work|root|home/\w+|tmp/\w+|Users/\w+)/\w",
    "a registry's address": r"https?://[\w.-]*(?:pypi|pythonhosted|conda|artifactory|nexus|devpi)[\w.-]*",
    # The one address that PyTorch itself names for its builds without CUDA belongs to nobody's machine.
    "a registry's option": r"(?:index-url|find-links)[\"', =]+https?://(?!download\.pytorch\.org)|PIP_INDEX_URL",
    "a simple index": r"https?://\S+/simple\b",
}
# Imported, and declared by way of the library that stands here.
BROUGHT = {"click": "typer", "datasets": "flwr-datasets", "packaging": "flwr"}


def test_the_packages_are_the_five_of_the_architecture_and_nothing_else() -> None:
    with_code = {Path(name).parts[0] for name in project_files() if name.endswith(".py") and "/" in name}
    assert with_code == {
        *PACKAGES,
        "tests",
        "deploy",
    }  # deploy/ has a script that `make` runs, and is not installed


def test_the_list_of_packages_is_that_of_the_folders() -> None:
    folders = sorted({str(Path(name).parent).replace("/", ".") for name in modules()})
    declared = PYPROJECT["tool"]["setuptools"]["packages"]
    # A folder of data that is read as a package resource has no code of its own.
    data = {name for name in PYPROJECT["tool"]["setuptools"]["package-data"] if name not in folders}
    assert sorted(declared) == sorted({*folders, *data})


def test_every_folder_with_code_is_a_package() -> None:
    gaps = {str(Path(name).parent) for name in modules()} - {
        str(Path(name).parent) for name in modules() if name.endswith("/__init__.py")
    }
    assert gaps == set()


def test_the_file_that_flower_wants_empty_is_empty() -> None:
    assert text("server/__init__.py") == ""


def test_a_module_is_named_after_what_it_holds() -> None:
    nothing = [
        path for path in ALL for part in Path(path).with_suffix("").parts if NAMES_NOTHING.search(part)
    ]
    assert nothing == []


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports the folders of tests flat."""
    names = sorted(Path(path).name for path in TESTS if Path(path).name.startswith("test_"))
    assert sorted(set(names)) == names


def test_a_long_file_or_function_says_why() -> None:
    silent = [
        f"{path} {name}: {length} lines"
        for path in ALL
        for name, length, docstring in lengths(path)
        if not LONGER.search(docstring)
    ]
    assert silent == []


def lengths(path: str) -> Iterator[tuple[str, int, str]]:
    """Name, lines and docstring of a file that is too long and of each function in it that is."""
    num_lines = len(text(path).splitlines())
    if num_lines > MAX_FILE:
        yield "", num_lines, ast.get_docstring(tree(path)) or ""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # Below the signature: the options of a command are a table, not code.
            length = (node.end_lineno or 0) - node.body[0].lineno + 1
            if length > MAX_FUNCTION:
                yield node.name, length, ast.get_docstring(node) or ""


def test_no_file_speaks_of_one_machine() -> None:
    found = []
    for path in project_files():
        if path != "LICENSE" and not path.endswith((".png", "tests/architecture/test_names.py")):
            found += [f"{path}: {what}" for what, rule in MACHINE.items() if re.search(rule, text(path))]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "see /home/ann/x",
        "cd /work/main",
        "'/tmp/scratch/a'",
        "https://pypi.example.org/x",
        "--index-url https://x",
    ],
)
def test_what_belongs_to_one_machine_is_seen(line: str) -> None:
    assert any(re.search(rule, line) for rule in MACHINE.values())


def test_every_library_that_is_imported_is_declared() -> None:
    project = PYPROJECT["project"]
    extras = [entry for entries in project["optional-dependencies"].values() for entry in entries]
    names = {distribution_of(entry) for entry in [*project["dependencies"], *extras]}
    installed, undeclared = packages_distributions(), []
    for path in modules():
        for name in {name.split(".")[0] for node in ast.walk(tree(path)) for name in imported(node)}:
            brought_by = [BROUGHT[name]] if name in BROUGHT else installed.get(name, [])
            if name not in PACKAGES and brought_by and not {distribution_of(d) for d in brought_by} & names:
                undeclared.append(f"{path}: {name}")
    assert undeclared == []


def distribution_of(entry: str) -> str:
    return re.split(r"[\[<>=!~; ]", entry)[0].lower().replace("_", "-")


def test_docstrings_use_the_sections_that_are_known() -> None:
    headings, found = re.compile(r"^(\w+):$", re.MULTILINE), {}
    for path in modules():
        for name, _, docstring in documented(tree(path)):
            unknown = set(headings.findall(docstring)) - SECTIONS
            if unknown:
                found[f"{path} {name}"] = unknown
    assert found == {}
