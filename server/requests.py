"""Requests of sites to join: what is read from files, what is refused, and what the coordinator keeps.

Guarantees:
    A request that is refused changes nothing: all that came together are looked at before one is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from server.provisioning import CoordinatorKit, check_node_key, make_folder
from tacit.durable import write_file
from tacit.errors import ConfigError, ProtocolError, StorageError
from tacit.federation import EnrolmentRequest

_MAX_FILE: Final = 16_384


def read_requests(kit: CoordinatorKit, paths: Sequence[Path]) -> dict[str, EnrolmentRequest]:
    """The requests in some files, by label, each good by itself.

    Args:
        kit: the coordinator's.
        paths: files, and folders with *.json files or with kits of sites.

    Raises:
        ConfigError: not a request, to another federation, without proof, of an unknown site, or two of one site.
        StorageError: a file cannot be read.
    """
    found: dict[str, EnrolmentRequest] = {}
    server_key = kit.server_identity().public
    for path in _files(paths):
        try:
            with path.open("rb") as file:
                request = EnrolmentRequest.decode(file.read(_MAX_FILE))
            request.check(kit.federation.name, server_key)
            check_node_key(request.node_key)
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
        except ProtocolError as error:
            raise ConfigError(str(error), source=path) from None
        if request.label not in kit.federation.sites:
            raise ConfigError(f"unknown-site: federation.toml declares no {request.label!r}", source=path)
        if found.setdefault(request.label, request) != request:
            raise ConfigError(f"duplicate: two different requests of {request.label!r}", source=path)
    return found


def stored_requests(kit: CoordinatorKit) -> dict[str, EnrolmentRequest]:
    """The requests that were kept, of the sites that federation.toml declares.

    Raises:
        StorageError: one is damaged.
    """
    found = {}
    for label in kit.federation.sites:
        path = kit.folder / "requests" / f"{label}.json"
        if path.exists():
            try:
                found[label] = EnrolmentRequest.decode(path.read_bytes())
                found[label].check(kit.federation.name, kit.server_identity().public)
            except (OSError, ProtocolError) as error:
                raise StorageError(f"{path}: damaged: {error}") from None
    return found


def store_request(kit: CoordinatorKit, request: EnrolmentRequest) -> None:
    """Keeps a request, and its node's key where Flower's command can read it.

    Raises:
        StorageError: a file cannot be written.
    """
    for folder, name, content in (
        ("nodes", f"{request.label}.pub", f"{request.node_key}\n".encode()),
        ("requests", f"{request.label}.json", request.encode()),
    ):
        make_folder(kit.folder / folder)
        write_file(kit.folder / folder / name, content)


def check_change(
    stored: EnrolmentRequest | None,
    request: EnrolmentRequest,
    *,
    revoked: Collection[bytes],
    signed: Collection[bytes],
    allowed: bool,
) -> None:
    """Whether a site may send this request after another.

    Args:
        stored: what it has sent before.
        request: what it sends now.
        revoked: identity keys that count no longer.
        signed: identity keys in rosters that somebody has signed: they are replaced by revoking only.
        allowed: whether the coordinator has said that it may be another.

    Raises:
        ConfigError: it may not.
    """
    label = request.label
    if request.key in revoked:
        raise ConfigError(f"revoked: {label!r} was revoked with this key, and needs a new one")
    if stored is None or stored == request or stored.key in revoked:
        return
    if not allowed:
        raise ConfigError(f"changed: {label!r} has sent another request before; --replace takes this one")
    if request.key != stored.key and stored.key in signed:
        raise ConfigError(
            f"changed: a roster that is signed has another key of {label!r}: revoke {label} first, or --restart"
            " while the first epoch is not complete"
        )


def check_distinct(kit: CoordinatorKit, requests: Mapping[str, EnrolmentRequest]) -> None:
    """Refuses a key that has two owners.

    Raises:
        ConfigError: with the labels.
    """
    owners = {kit.server_identity().public: "the coordinator", kit.root_key: "the root"}
    nodes: dict[str, str] = {}
    for label, request in requests.items():
        node = request.node_key.split()[1]  # what follows it is a remark
        for owner in (owners.setdefault(request.key, label), nodes.setdefault(node, label)):
            if owner != label:
                raise ConfigError(f"duplicate: {label!r} sends a key that {owner!r} has")


def _files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        files += sorted([*path.glob("*.json"), *path.glob("*/request.json")]) if path.is_dir() else [path]
    return files
