"""One site: its folder with data, description, policy, ledger and sessions. Nothing else is read or written."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import tomli_w

from tacit.durable import write_file
from tacit.errors import ConfigError, ProtocolError, StorageError
from tacit.privacy.ledger import Ledger
from tacit.privacy.policy import SitePolicy
from tacit.toml import read_toml

if TYPE_CHECKING:
    from tacit.secagg.identity import Identity
    from tacit.secagg.roster import Roster

POLICY: Final = "policy.toml"
_DATA: Final = re.compile(r"\s*data\s*=")


@dataclass(frozen=True)
class Site:
    """A participant's own folder.

    Attributes:
        folder: holds data.csv, site.toml, identity.key, roster.jsonl (in a simulation roster.json), optionally
            policy.toml, and what Tacit keeps: ledger, journal, sessions.
        label: the site's name in the federation.
        data_set: id of the data set that the ledger is kept for; survives changes of the file. A new id, and with
            it a new folder, is for data that share no record with the old.
        data: the file with the records, or the folder with images.
        policy: what the site allows; it can only tighten what the federation agreed.
        durable: whether ledger entries are fsynced; a simulated site may do without.
        stamp: of policy.toml when it was read; see `policy_stamp`.
    """

    folder: Path
    label: str
    data_set: str
    data: Path
    policy: SitePolicy
    durable: bool = True
    stamp: tuple[int, ...] = field(default=(), compare=False)

    @classmethod
    def open(cls, folder: Path) -> Site:
        """Reads site.toml and policy.toml.

        Raises:
            ConfigError: the folder is no site's folder; names the file and the key.
        """
        description = folder / "site.toml"
        fields = {"data": "data.csv", **read_toml(description)}
        for key in ("label", "data_set", "data"):
            if not isinstance(fields.get(key), str) or not fields[key]:
                raise ConfigError("required key is missing or not text", source=description, key=key)
        policy_file, stamp = folder / POLICY, policy_stamp(folder)
        policy = SitePolicy.load(policy_file) if policy_file.exists() else SitePolicy()
        return cls(
            folder,
            fields["label"],
            fields["data_set"],
            folder / fields["data"],
            policy,
            bool(fields.get("durable", True)),
            stamp,
        )

    def ledger(self) -> Ledger:
        """The data set's ledger, opened under its lock; the caller closes it."""
        return Ledger.open(self.folder / "ledger" / "ledger.jsonl", durable=self.durable)

    def identity(self) -> Identity:
        """This site's signing key, made at its enrolment.

        Raises:
            StorageError: there is none, or others can read it.
        """
        from tacit.secagg.identity import Identity

        return Identity.load(self.folder / "identity.key")

    def roster(self) -> Roster:
        """The members as this site has them: the newest epoch that it has accepted, or in a simulation the only one.

        Signed by the members, never taken from the server.

        Raises:
            StorageError: the file is missing or damaged, or a signature is.
        """
        accepted = self.folder / "roster.jsonl"
        if accepted.exists():
            from tacit.secagg.signed_roster import RosterFile

            try:
                with RosterFile.open(accepted, durable=self.durable) as file:
                    return file.roster
            except ProtocolError as error:
                raise StorageError(f"{accepted}: {error}") from None
        path = self.folder / "roster.json"
        try:
            return _accepted(path.read_bytes())
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror}") from None
        except ProtocolError as error:
            raise StorageError(f"{path}: {error}") from None


def policy_stamp(folder: Path) -> tuple[int, ...]:
    """What changes when policy.toml does; empty where there is none."""
    try:
        status = (folder / POLICY).stat()
    except FileNotFoundError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def set_data(folder: Path, file: Path) -> None:
    """Has site.toml name another file, or folder, with the records; every other line stays as somebody wrote it.

    Raises:
        ConfigError: there is no such file or folder, or no site.toml.
        StorageError: site.toml cannot be written.
    """
    if not (file.is_file() or file.is_dir()):
        raise ConfigError("is neither a file nor a folder", source=file, key="--data")
    path = folder / "site.toml"
    before = read_toml(path)
    name = (
        os.path.relpath(file.resolve(), folder) if file.resolve().is_relative_to(folder) else file.resolve()
    )
    if before.get("data") == str(name):
        return
    line = tomli_w.dumps({"data": str(name)})
    lines = [old for old in path.read_text(encoding="utf-8-sig").splitlines(True) if not _DATA.match(old)]
    text = line + "".join(lines)
    if tomllib.loads(text) != {**before, "data": str(name)}:
        raise ConfigError(f"cannot be changed; write into it: {line.strip()}", source=path, key="data")
    write_file(path, text.encode())


@lru_cache(maxsize=4)
def _accepted(content: bytes) -> Roster:
    """The roster in a file whose signatures are good: checked once, however many sites a process plays."""
    from tacit.secagg.signed_roster import SignedRoster, check_first

    signed = SignedRoster.decode(content)
    check_first(signed)
    return signed.roster
