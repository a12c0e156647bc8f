"""One site: its folder with data, description, policy, ledger and sessions. Nothing else is read or written."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from tacit.errors import ConfigError
from tacit.privacy.ledger import Ledger
from tacit.privacy.policy import SitePolicy


@dataclass(frozen=True)
class Site:
    """A participant's own folder.

    Attributes:
        folder: holds data.csv, site.toml, optionally policy.toml, and what Tacit keeps: ledger, sessions.
        label: the site's name in the federation.
        data_set: id of the data set that the ledger is kept for; survives changes of the file. A new id, and with
            it a new folder, is for data that share no record with the old.
        data: the file with the records.
        policy: what the site allows; it can only tighten what the federation agreed.
        durable: whether ledger entries are fsynced; a simulated site may do without.
    """

    folder: Path
    label: str
    data_set: str
    data: Path
    policy: SitePolicy
    durable: bool = True

    @classmethod
    def open(cls, folder: Path) -> Site:
        """Reads site.toml and policy.toml.

        Raises:
            ConfigError: the folder is no site's folder; names the file and the key.
        """
        description = folder / "site.toml"
        try:
            fields = tomllib.loads(description.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(error.strerror or str(error), source=description) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"not valid TOML: {error}", source=description) from None
        fields = {"data": "data.csv", **fields}
        for key in ("label", "data_set", "data"):
            if not isinstance(fields.get(key), str) or not fields[key]:
                raise ConfigError("required key is missing or not text", source=description, key=key)
        policy_file = folder / "policy.toml"
        policy = SitePolicy.load(policy_file) if policy_file.exists() else SitePolicy()
        return cls(
            folder,
            fields["label"],
            fields["data_set"],
            folder / fields["data"],
            policy,
            bool(fields.get("durable", True)),
        )

    def ledger(self) -> Ledger:
        """The data set's ledger, opened under its lock; the caller closes it."""
        return Ledger.open(self.folder / "ledger" / "ledger.jsonl", durable=self.durable)
