"""What a process that plays all sites keeps of each between rounds: who takes part, what it allows, its open ledger.

A real site opens its folder for every message. Nothing about a simulated one changes behind this process's back,
except its policy, which an operator may edit: that file is looked at before each round.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Final

from client import guard, plain
from client.guard import Received
from client.participant import Participant
from client.rate import FILE, count_round
from client.site import Site
from simulations.run import ROUNDS_PER_HOUR
from tacit.privacy.ledger import Ledger

MOST_LEDGERS: Final = 400  # open at once: a process may have about a thousand files

Stamp = tuple[
    int, int, int
]  # of a file: when it was changed, its size, its number; zeros where there is none


class HeldLedgers:
    """Open ledgers, the last used ones; each stays locked for other processes until it is closed."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, Ledger] = OrderedDict()

    def of(self, site: Site) -> Ledger:
        """A site's ledger, opened where it is not."""
        ledger = self._open.pop(site.folder, None) or Site.ledger(site)
        self._open[site.folder] = ledger
        if len(self._open) > MOST_LEDGERS:
            self._open.popitem(last=False)[1].close()
        return ledger

    def drop(self, site: Site) -> None:
        """Closes a site's ledger: after a failed write what is in it has to be read again."""
        if ledger := self._open.pop(site.folder, None):
            ledger.close()

    def close(self) -> None:
        """Gives all of them free."""
        with ExitStack() as stack:
            for ledger in self._open.values():
                stack.callback(ledger.close)
            self._open.clear()


@dataclass(frozen=True)
class HeldSite(Site):
    """A site whose ledger stays open from one debit to the next."""

    ledgers: HeldLedgers | None = None

    @classmethod
    def of(cls, site: Site, ledgers: HeldLedgers) -> HeldSite:
        """The same site."""
        return cls(**{field.name: getattr(site, field.name) for field in fields(Site)}, ledgers=ledgers)

    def ledger(self) -> AbstractContextManager[Ledger]:  # type: ignore[override]
        """See `Site`; leaving the block closes it only after an error."""
        assert self.ledgers is not None
        return _Use(self, self.ledgers)


@dataclass(frozen=True)
class _Use:
    site: Site
    ledgers: HeldLedgers

    def __enter__(self) -> Ledger:
        return self.ledgers.of(self.site)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) or (kind is not None and kind.__name__ == "StorageError"):
            self.ledgers.drop(self.site)


class HeldMember:
    """One participant, and the verdict of its policy as long as the policy's file stays as it is."""

    def __init__(self, client: Participant, ledgers: HeldLedgers) -> None:
        self.client = client
        self._ledgers = ledgers
        self._policy = str(client.site.folder / "policy.toml")
        self._stamp: Stamp | None = _stamp(self._policy)
        self._admitted = 0  # size of the model that it was asked about
        client.site = HeldSite.of(client.site, ledgers)

    def permit(self, model: Received) -> None:
        """Raises `Refused` unless the site lets single vectors of such a model out, in this round."""
        client, stamp = self.client, _stamp(self._policy)
        if stamp != self._stamp:
            client.site = HeldSite.of(Site.open(client.site.folder), self._ledgers)
            self._stamp, self._admitted = stamp, 0
        if self._admitted != model.num_parameters:
            plain.require_permission(client)
            guard.admit(client.site, client.run.experiment)
            guard.check_received(client.site, model)
            self._admitted = model.num_parameters
        if model.problem is not None or model.norm > client.site.policy.max_model_norm:
            guard.check_received(client.site, model)
        if (hourly := client.site.policy.max_rounds_per_hour) < ROUNDS_PER_HOUR:
            count_round(client.site.folder / FILE, hourly)

    def release(self) -> None:
        """The participant opens its ledger by itself again."""
        site = self.client.site
        self.client.site = Site(**{field.name: getattr(site, field.name) for field in fields(Site)})


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino
