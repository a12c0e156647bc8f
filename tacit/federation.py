"""What a federation is on paper: the coordinator's `federation.toml`, the part of it that each site gets, and the
request that a site answers with.

Guarantees:
    A request that is changed in any byte is refused, and so is one that was made for another federation.
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, field_validator

from tacit.data.schema import Count, Frozen, Positive
from tacit.errors import ConfigError, ProtocolError
from tacit.secagg.encoding import Writer
from tacit.secagg.identity import IDENTITY_BYTES, Identity, check_identity, verify
from tacit.secagg.members import SERVER
from tacit.toml import load_as

MAX_ROWS: Final = 2**48 - 1
COORDINATOR: Final = "coordinator"  # the name of its kit's folder, so no site's label
DEFAULT_KIT: Final = Path("kits") / COORDINATOR

_LABEL_FORM: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"  # names a folder, and stands in an HTTP header
_HOST_FORM: Final = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
_MAX_REQUEST: Final = 16_384

Label = Annotated[str, Field(pattern=f"^{_LABEL_FORM}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Range = Annotated[tuple[float, float], Field(strict=False)]


class RosterRules(Frozen):
    """`[rules]`: what every site signs. What the fields mean is said at `tacit.secagg.roster.Roster`.

    Attributes:
        min_clients: n_min; 0 = all members but `max_dropouts`.
        max_clients: n_max; 0 = all members.
        max_corrupt: c.
        max_dropouts: D, at most what a cohort of `min_clients` can lose.
        bundles: hashes of app bundles beside Tacit's own, which is always listed.
    """

    min_clients: Annotated[int, Field(ge=0)] = 0
    max_clients: Annotated[int, Field(ge=0)] = 0
    max_corrupt: Count = 1
    max_dropouts: Annotated[int, Field(ge=0)] = 0
    clip: Range = (1e-6, 100.0)
    noise: Range = (0.0, 1000.0)
    rounds: Annotated[tuple[int, int], Field(strict=False)] = (1, 100_000)
    epsilon_record: Positive | None = None
    epsilon_client: Positive | None = None
    model_schemas: Annotated[tuple[Digest, ...], Field(strict=False)] = ()
    bundles: Annotated[tuple[Digest, ...], Field(strict=False)] = ()


class Lifetimes(Frozen):
    """`[days]`: how long what is made counts.

    Attributes:
        identity: an identity in the roster.
        certificate: the server's TLS certificate. Some TLS libraries refuse more than 825 days.
    """

    identity: Annotated[int, Field(ge=1, le=3650)] = 365
    certificate: Annotated[int, Field(ge=1, le=825)] = 365


class _Named(Frozen):
    """What coordinator and site both need."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,79}$")]
    address: str

    @field_validator("address")
    @classmethod
    def _address(cls, text: str) -> str:
        host, _, port = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        try:
            good = (ipaddress.ip_address(bare).version == 6) == (bare != host)
        except ValueError:
            good = _HOST_FORM.fullmatch(host) is not None
        if not (good and re.fullmatch(r"[1-9][0-9]{0,4}", port) and int(port) < 65536):
            raise ValueError(f'must be "host:port" as the sites dial it, not {text[:80]!r}')
        return text

    @property
    def host(self) -> str:
        """The host name or address of `address`, without brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of `address`."""
        return int(self.address.rpartition(":")[2])


class FederationFile(_Named):
    """The coordinator's `federation.toml`.

    Attributes:
        name: of the federation; a site's request counts for this name only.
        address: "host:port" that the sites dial.
        sites: labels of the members; each gets a kit.
        root_holder: who holds the offline root key, where one signs the roster in place of the sites: a name for
            the privacy statement.
    """

    sites: Annotated[tuple[Label, ...], Field(strict=False, min_length=1)]
    root_holder: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{0,200}$")] = ""
    rules: RosterRules = RosterRules()
    days: Lifetimes = Lifetimes()

    @field_validator("sites")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        lowered = [label.lower() for label in labels]  # two folders, on every file system
        for label in labels:
            if lowered.count(label.lower()) > 1:
                raise ValueError(f"{label!r} is there twice")
        if COORDINATOR in lowered:
            raise ValueError(f"{COORDINATOR!r} is the name of the coordinator's own kit")
        return labels

    @classmethod
    def load(cls, path: Path) -> FederationFile:
        """Reads the file.

        Raises:
            ConfigError: one line that names the file and the key.
        """
        return load_as(cls, path)


class Invitation(_Named):
    """A site's `federation.toml`: the public part.

    Attributes:
        label: the site's name in the federation.
        server_key: the coordinator's identity key, hex.
    """

    label: Label
    server_key: Digest

    @classmethod
    def load(cls, path: Path) -> Invitation:
        """Reads the file.

        Raises:
            ConfigError: one line that names the file and the key.
        """
        invitation = load_as(cls, path)
        try:
            check_identity(invitation.key)
        except ProtocolError as error:
            raise ConfigError(str(error), source=path, key="server_key") from None
        return invitation

    @property
    def key(self) -> bytes:
        """The coordinator's identity key, 32 bytes."""
        return bytes.fromhex(self.server_key)


@dataclass(frozen=True)
class EnrolmentRequest:
    """What a site sends to be enrolled, signed with the identity that it enrols: proof of possession.

    Attributes:
        federation: name of the federation.
        server_key: the coordinator's identity key, 32 bytes.
        label: the site.
        key: its identity key, 32 bytes.
        node_key: its node's public key for Flower's authentication, a line in OpenSSH form.
        num_rows: declared size of its data set.
        signature: by `key` over all the others, 64 bytes.
    """

    federation: str
    server_key: bytes
    label: str
    key: bytes
    node_key: str
    num_rows: int
    signature: bytes = b""

    @classmethod
    def make(
        cls, invitation: Invitation, identity: Identity, node_key: str, num_rows: int
    ) -> EnrolmentRequest:
        """A signed request.

        Raises:
            ConfigError: the number of rows is none that can be declared.
        """
        if not 1 <= num_rows <= MAX_ROWS:
            raise ConfigError(f"{num_rows} rows cannot be declared: 1 or more", key="rows")
        bare = cls(invitation.name, invitation.key, invitation.label, identity.public, node_key, num_rows)
        signature = identity.sign("enrolment-request", bare.server_key, SERVER, bare._body_hash())
        return cls(*bare._fields(), signature)

    def check(self, federation: str, server_key: bytes) -> None:
        """Whether this is a request to this federation by the holder of its key.

        Raises:
            ProtocolError: "other-federation", "label", "rows", "signature" or "identity-key".
        """
        if (self.federation, self.server_key) != (federation, server_key):
            raise ProtocolError("other-federation", f"{self.label!r} asks to join {self.federation!r}")
        if re.fullmatch(_LABEL_FORM, self.label) is None:
            raise ProtocolError("label", "a label has letters, digits, '.', '_' and '-' only")
        if not 1 <= self.num_rows <= MAX_ROWS:
            raise ProtocolError("rows", f"{self.label!r} declares {self.num_rows} rows")
        try:
            verify(self.key, self.signature, "enrolment-request", server_key, SERVER, self._body_hash())
        except ProtocolError as error:
            raise ProtocolError(
                error.reason, f"{self.label!r} has not shown that it holds this key"
            ) from None

    def encode(self) -> bytes:
        """The file `request.json`."""
        content = {
            "tacit_request": 1,
            "federation": self.federation,
            "server_key": self.server_key.hex(),
            "label": self.label,
            "identity_key": self.key.hex(),
            "node_key": self.node_key,
            "rows": self.num_rows,
            "signature": self.signature.hex(),
        }
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def decode(cls, data: bytes) -> EnrolmentRequest:
        """The reverse of `encode`; line ends of Windows are allowed. The signature is not checked yet.

        Raises:
            ProtocolError: "request-file".
        """
        try:
            content = json.loads(data[: _MAX_REQUEST + 1])
            request = cls(
                content["federation"],
                bytes.fromhex(content["server_key"]),
                content["label"],
                bytes.fromhex(content["identity_key"]),
                content["node_key"],
                content["rows"],
                bytes.fromhex(content["signature"]),
            )
            whole = request.encode() == data.replace(b"\r\n", b"\n")
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            raise ProtocolError("request-file", "this is not a request to join") from None
        texts = (request.federation, request.label, request.node_key)
        sized = len(request.server_key) == len(request.key) == IDENTITY_BYTES
        if not (whole and sized and type(request.num_rows) is int and all(type(t) is str for t in texts)):
            raise ProtocolError("request-file", "this is not a request to join, or it was changed")
        return request

    def _fields(self) -> tuple[str, bytes, str, bytes, str, int]:
        return self.federation, self.server_key, self.label, self.key, self.node_key, self.num_rows

    def _body_hash(self) -> bytes:
        writer = Writer("enrolment-request").text(self.federation).data(self.server_key).text(self.label)
        return writer.data(self.key).text(self.node_key).number(self.num_rows).hash()
