"""The Flower app bundle of Tacit: one constant file without code.

A Flower run needs a bundle, and a stock node installs the one that the server sends. Tacit's says only where
the installed packages keep their apps. What to train travels as text in the one run-config key `experiment`.

Guarantees:
    The bundle's hash is the same whenever it is built on one platform, so sites can have it on a list.
"""

from __future__ import annotations

from pathlib import Path

# Its own version, not Tacit's: the hash that sites have on their lists must not change with each release.
PYPROJECT = """\
[project]
name = "tacit"
version = "1.0.0"
description = "Names the apps of the installed tacit package; carries no code."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "tacit"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
experiment = ""
"""


def write(folder: Path) -> Path:
    """Writes the bundle's source into `folder`, which holds nothing else, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_bytes(PYPROJECT.encode())
    return folder


def fab_hash(folder: Path) -> str:
    """SHA-256, in hex, of the bundle that `flwr run` builds from a folder that `write` made."""
    import hashlib

    from flwr.cli.build import build_fab_from_disk

    return hashlib.sha256(build_fab_from_disk(folder)).hexdigest()
