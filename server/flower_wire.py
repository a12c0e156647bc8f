"""Flower's Control API, asked directly: the command line starts a process of about a second for each question.

One of three files that use Flower's private modules; pinned with Flower's version, and a test fails first when
they move.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

import click
import httpx
from flwr.cli.build import build_fab_from_disk
from flwr.cli.supernode.register import try_load_public_key
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from server.superlink import ProgramEnded, SuperLink
from tacit.errors import ConfigError, RunFailed

FINISHED = "finished"
GONE = ("unregistered", "deleted")
_Answer = TypeVar("_Answer")


class Node(NamedTuple):
    """A registered node: Flower's id of it, its public key as Flower keeps it (PEM), whether it is connected."""

    id: int
    key: bytes
    online: bool


class Control:
    """What the owner of a SuperLink may ask of it, for the length of a `with`.

    Every method raises `ProgramEnded` when the SuperLink does not answer, and `RunFailed` when it refuses.
    """

    def __init__(self, link: SuperLink) -> None:
        ca = link.tls.ca.read_bytes() if link.tls else None
        self._client = ControlHttpClient.from_server_address(
            link.address, link.tls is None, ca, [RuntimeVersionHttpInterceptor("tacit")]
        )

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def nodes(self) -> list[Node]:
        """All nodes that are registered."""
        found = _asked(lambda: self._client.ListNodes(ListNodesRequest())).nodes_info
        return [
            Node(node.node_id, node.public_key, node.status == "online")
            for node in found
            if node.status not in GONE
        ]

    def register(self, key: bytes, name: str) -> int:
        """Lets the holder of a key connect; returns the id of its node."""
        return int(
            _asked(lambda: self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))).node_id
        )

    def unregister(self, node: int) -> None:
        """Lets it connect no more."""
        _asked(lambda: self._client.UnregisterNode(UnregisterNodeRequest(node_id=node)))

    def start(self, bundle: Path, experiment: str) -> int:
        """Starts a run; returns Flower's id of it.

        Args:
            bundle: folder of the bundle's source.
            experiment: canonical TOML text.
        """
        content = build_fab_from_disk(bundle)
        fab = fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {}))
        config = user_config_to_proto({"experiment": experiment})
        request = StartRunRequest(fab=fab, override_config=config)
        return int(_asked(lambda: self._client.StartRun(request)).run_id)

    def unfinished(self) -> list[int]:
        """Ids of the runs that Flower takes for pending, starting or running."""
        runs = _asked(lambda: self._client.ListRuns(ListRunsRequest())).run_dict
        return [run_id for run_id, run in runs.items() if run.status.status != FINISHED]

    def stop(self, run: int) -> None:
        """Ends a run; one that has just ended by itself is as good."""
        try:
            _asked(lambda: self._client.StopRun(StopRunRequest(run_id=run)))
        except RunFailed:
            if run in self.unfinished():
                raise


def load_key(path: Path) -> bytes:
    """A node's public key, a file in OpenSSH form, as Flower keeps it.

    Raises:
        ConfigError: this is none.
    """
    try:
        return try_load_public_key(path)
    except (OSError, click.ClickException, SystemExit) as error:
        raise ConfigError(f"no public key of a node: {error}", source=path) from None


def _asked(question: Callable[[], _Answer]) -> _Answer:
    try:
        return question()
    except httpx.HTTPStatusError as error:
        answer = error.response
        if answer.is_server_error:
            raise ProgramEnded(f"the SuperLink fails: {answer.status_code}") from None
        raise RunFailed(f"the SuperLink refuses: {answer.status_code} {answer.text[:300]}") from None
    except (httpx.HTTPError, ValueError) as error:
        raise ProgramEnded(f"the SuperLink does not answer: {error}") from None
