"""Our files as the tests of the architecture read them: text and syntax trees, nothing is imported."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("tacit", "client", "server", "strategies", "simulations")


def modules(*packages: str) -> list[str]:
    """Paths of the Python files of some packages (of all five when none is named), relative to the root."""
    found = (file for name in packages or PACKAGES for file in (ROOT / name).rglob("*.py"))
    return sorted(str(file.relative_to(ROOT)) for file in found)


def project_files() -> list[str]:
    """What git tracks or would track; every file but the ignored, where there is no git (an unpacked archive)."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return sorted(name for name in done.stdout.splitlines() if (ROOT / name).is_file())
    hidden = {".venv", "build", "dist", "__pycache__"}
    names = (file.relative_to(ROOT) for file in ROOT.rglob("*") if file.is_file())
    return sorted(str(name) for name in names if not any(p in hidden or p[0] == "." for p in name.parts))


@cache
def text(path: str) -> str:
    """Content of one of our files."""
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def tree(path: str) -> ast.Module:
    """Syntax tree of one of our files."""
    return ast.parse(text(path), filename=path)


def documented(module: ast.Module) -> Iterator[tuple[str, ast.AST, str]]:
    """Name, node and docstring of the module itself and of each of its classes and functions that has one."""
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield getattr(node, "name", ""), node, docstring


@cache
def has_test(node: str) -> bool:
    """Whether a test function, `file::name` from the root, is there."""
    path, _, name = node.partition("::")
    if not (ROOT / path).is_file():
        return False
    return any(isinstance(n, ast.FunctionDef) and n.name == name for n in ast.walk(tree(path)))
