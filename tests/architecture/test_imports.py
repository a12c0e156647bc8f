"""Who may import whom: the walls of the architecture, read from the syntax trees of all our files.

An import inside a function and one under TYPE_CHECKING count as any other: what a signature names, the package
knows. Only the rule about what is loaded at start looks at the place of an import.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.architecture.sources import PACKAGES, ROOT, modules, text, tree

# package -> prefixes of our own modules that it must not import
CLOSED = {
    "tacit": ("client", "server", "strategies", "simulations", "tests"),
    "client": ("server", "strategies", "simulations", "tests", "tacit.secagg.server"),
    "strategies": ("client", "server", "simulations", "tests", "tacit.secagg.client"),
    "server": ("client", "simulations", "tests", "tacit.secagg.client"),
    "simulations": ("tests",),
}
WIRES = ("client/flower_wire.py", "server/flower_wire.py", "simulations/local_grid.py")
# Sub-commands; a user's own task; what `tacit doctor` tries, in a process of its own.
LOADS_BY_NAME = ("tacit/cli.py", "tacit/tasks/task.py", "tacit/doctor.py")
# library or module -> where it may be imported; a name that ends with "/" is a folder
HOMES = {
    "flwr": ("client/", "server/", "strategies/", "simulations/"),
    "opacus": ("client/", "simulations/"),
    "cryptography": ("tacit/secagg/", "tacit/privacy/", "server/provisioning.py", "client/enrolment.py"),
    "nacl": ("tacit/secagg/",),
    "tacit.secagg.in_process": ("simulations/",),
    # Flower's private modules. Flower is pinned exactly, and these files are where it will hurt.
    "flwr.supernode": WIRES,
    "flwr.supercore": WIRES,
    "flwr.superlink": WIRES,
    # The one thing that `flwr run` does to a bundle and that its public interface does not offer.
    "flwr.cli": ("server/bundle.py", "server/flower_wire.py"),
    # Any other import is to be seen in the source, with its full name.
    "importlib.import_module": LOADS_BY_NAME,
    "import_module": LOADS_BY_NAME,
    "__import__": (),
    ".": (),
}
OPTIONAL = (
    "pandas", "pyarrow", "sklearn", "matplotlib", "jinja2", "flwr_datasets", "datasets", "ray", "optuna",
    "captum", "mlflow", "onnx", "onnxruntime", "onnxscript", "tritonclient",
)  # fmt: skip
ON_A_DEVICE = ("client", "tacit", "strategies", "server")


def imported(node: ast.AST) -> list[str]:
    """Full names that a statement may import: `from a import b` is a and a.b; a relative import is "."."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            return ["."]
        return [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Name | ast.Attribute):
        name = node.id if isinstance(node, ast.Name) else node.attr
        return [name] if name in ("import_module", "__import__") else []
    return []


def is_within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def broken_walls(path: str, module: ast.Module) -> list[str]:
    """Each import in a file that the table forbids, as `line: name`."""
    package, found = path.split("/")[0], []
    for node in ast.walk(module):
        for name in imported(node):
            homes = [home for what, home in HOMES.items() if is_within(name, what)]
            outside = any(not path.startswith(home) for home in homes)
            if outside or any(is_within(name, closed) for closed in CLOSED[package]):
                found.append(f"{node.lineno}: {name}")  # type: ignore[attr-defined]
    return found


def loaded_at_start(module: ast.Module) -> Iterator[str]:
    """Names imported when the module is: outside of functions and of `if TYPE_CHECKING:`."""
    queue: list[ast.AST] = [module]
    while queue:
        node = queue.pop()
        yield from imported(node)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            queue.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            queue.extend(ast.iter_child_nodes(node))


def test_a_file_imports_only_what_its_package_may() -> None:
    broken = {path: lines for path in modules() if (lines := broken_walls(path, tree(path)))}
    assert broken == {}


def test_an_optional_library_is_imported_where_it_is_used() -> None:
    early = {
        path: names
        for path in modules(*ON_A_DEVICE)
        if (names := [n for n in loaded_at_start(tree(path)) if n.split(".")[0] in OPTIONAL])
    }
    assert early == {}


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("tacit/update.py", "import flwr"),
        ("tacit/update.py", "def f():\n    from client import site"),
        ("tacit/update.py", "if TYPE_CHECKING:\n    import opacus"),
        ("tacit/data/readers.py", "from cryptography.hazmat.primitives import hashes"),
        ("tacit/data/readers.py", "from . import table"),
        ("tacit/data/readers.py", "importlib.import_module('flwr')"),
        ("tacit/data/readers.py", "from importlib import import_module as f"),
        ("tacit/data/readers.py", "__import__('flwr')"),
        ("tacit/secagg/server.py", "from tacit.secagg import in_process"),
        ("client/app.py", "import server.app"),
        ("client/app.py", "from tacit.secagg import server"),
        ("client/app.py", "from flwr.supernode.start_client_internal import start_client_internal"),
        ("server/app.py", "from client import site"),
        ("server/app.py", "from opacus import PrivacyEngine"),
        ("server/app.py", "import cryptography"),
        ("strategies/grids.py", "from flwr.supercore.run import Run"),
        ("strategies/grids.py", "import tacit.secagg.client as machine"),
        ("simulations/run.py", "from tests import faults"),
    ],
)
def test_a_broken_wall_is_seen(path: str, line: str) -> None:
    assert broken_walls(path, ast.parse(line))


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import ray", ["ray"]),
        ("try:\n    import ray\nexcept ImportError:\n    pass", ["ray"]),
        ("class A:\n    import ray", ["ray"]),
        ("if TYPE_CHECKING:\n    import ray\nelse:\n    import pandas", ["pandas"]),
        ("def f():\n    import ray", []),
    ],
)
def test_what_is_loaded_at_start_is_seen(source: str, names: list[str]) -> None:
    assert list(loaded_at_start(ast.parse(source))) == names


def test_the_command_names_the_folders_as_strings_only() -> None:
    strings = {n.value for n in ast.walk(tree("tacit/cli.py")) if isinstance(n, ast.Constant)}
    targets = {str(s) for s in strings if isinstance(s, str) and s.split(".")[0] in PACKAGES and ":" in s}
    for target in targets:
        module, _, function = target.partition(":")
        path = module.replace(".", "/") + ".py"
        assert (ROOT / path).is_file(), f"{target}: no such module"
        defined = f"def {function}(", f"{function} = typer.Typer("
        assert any(start in text(path) for start in defined), f"{target}: neither a function nor a group"
    assert {target.split(".")[0] for target in targets} >= {"simulations", "server", "client", "tacit"}


@pytest.mark.parametrize(
    ("entry", "unwanted"),
    [
        ("tacit.cli", ("torch", "opacus", "pandas", "ray", "flwr", "dp_accounting", "sklearn")),
        ("client.cli", ("torch", "opacus", "pandas", "ray", "flwr", "dp_accounting", "sklearn")),
        ("server.cli", ("torch", "opacus", "pandas", "ray", "flwr", "dp_accounting", "sklearn")),
        ("simulations.cli", ("torch", "opacus", "pandas", "ray", "flwr", "dp_accounting", "sklearn")),
        ("client.app", ("torch", "opacus", "pandas", "ray", "pyarrow", "sklearn", "matplotlib", "server")),
        ("server.app", ("torch", "opacus", "pandas", "ray", "pyarrow", "sklearn", "matplotlib", "client")),
    ],
)
def test_an_idle_client_has_not_imported_torch_and_no_command_pays_for_another(
    entry: str, unwanted: tuple[str, ...]
) -> None:
    code = f"import sys, {entry}; print(*set(sys.modules) & set({unwanted!r}))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
