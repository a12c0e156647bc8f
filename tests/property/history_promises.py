"""I1-I6: what holds of a federation at every moment, whoever has died and whatever was lost. Read from the files.

I1  a release is paid for once
I2  nothing is in a sum that its client has not paid for
I3  one sum for each run, round and attempt, and one for each round
I4  each model is made from the one before by the sum that its receipt names
I5  a sum has as many survivors as were agreed
I6  an attempt that was given up has no sum
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
from history_link import NUM_SITES
from history_world import FIRST_NODE, World

from client.journal import SiteJournal
from client.participant import run_of
from server.checkpoint import Checkpoint, name_of
from server.receipts import receipts_in
from server.state import read_rounds
from strategies.rounds import Arrays, arranged
from tacit.audit import SERVER_FILE, AuditLog
from tacit.privacy.ledger import Entry, Ledger
from tacit.secagg.contexts import model_digest
from tacit.secagg.journal import Attempt
from tacit.secagg.messages import MaskAnswer, SetupAnswer
from tacit.secagg.receipt import Receipt, aggregate_digest
from tacit.update import Aggregate

FEWEST = NUM_SITES - 1


class Promises:
    """Looks at a world after each move."""

    def __init__(self, world: World) -> None:
        self._world = world
        world.link.look = self.left
        self._paid: list[tuple[Entry, ...]] = [()] * NUM_SITES
        self._receipts: list[Receipt] = []
        self._rounds: dict[bytes, int] = {}  # of each context under which a site has masked
        self._uses: dict[Any, Any] = {}
        self._size = -1

    def check(self) -> None:
        """What the server has opened since the last look."""
        log = self._world.sites / SERVER_FILE
        size = log.stat().st_size if log.exists() else 0
        if size != self._size:
            self._size = size
            self._sums()

    # -- what has left a site

    def left(self, answer: Any) -> None:
        """At each answer: a key and a mask are for one thing only; a vector was paid for before it leaves."""
        if not answer.has_error():
            with self._world.looking():
                self._left(answer)

    def _left(self, answer: Any) -> None:
        kind, site = answer.metadata.message_type, answer.metadata.src_node_id - FIRST_NODE
        body = answer.content["tacit"].get("body", b"")
        if kind == "train.tacit0":
            entry = SetupAnswer.decode(body).entry
            for key in (entry.enc_pk, entry.mask_pk, entry.nonce):
                self._use("key or nonce", key, (site, body))
        elif kind == "train.tacit2" and "vector" in answer.content:
            told, vector = MaskAnswer.decode(body), answer.content["vector"]["words"].data
            self._use("masks", (site, told.context), (body, vector))
            entries = self._entries(site)
            number = self._rounds.setdefault(told.context, self._round_of(site))
            assert self._attempt(site).ctx2 == told.context.hex(), "it left and is not in the journal"
            assert any(self._pays(entry, number) for entry in entries), "I2: it left and was not paid for"

    def _use(self, what: str, thing: Any, used_for: Any) -> None:
        assert self._uses.setdefault((what, thing), used_for) == used_for, f"{what} was used for two things"

    def _attempt(self, site: int) -> Attempt:
        return SiteJournal(self._world.sites / str(site), durable=False).runs[self.run]

    def _round_of(self, site: int) -> int:
        return self._attempt(site).round

    # -- what was paid

    @property
    def run(self) -> str:
        return str(json.loads((self._world.state / "run.json").read_bytes())["run"])

    @property
    def _is_private(self) -> bool:
        return self._world.experiment.privacy.record is not None

    def _pays(self, entry: Entry, number: int) -> bool:
        return entry.run == self.run and (entry.round == number or not self._is_private)

    def _entries(self, site: int) -> tuple[Entry, ...]:
        with Ledger.open(self._world.sites / str(site) / "ledger" / "ledger.jsonl", durable=False) as ledger:
            entries = ledger.entries
        before = self._paid[site]
        assert entries[: len(before)] == before, "what was spent stays spent"
        self._paid[site] = entries
        return entries

    def check_debits(self) -> None:
        """I1: once for each round; of a site that was killed, at most once more for each kill."""
        for site, member in enumerate(self._world.members):
            paid = Counter((e.run, e.round, e.purpose) for e in self._entries(site))
            extra = sum(paid.values()) - len(paid)
            assert extra <= member.num_kills, f"I1: site-{site + 1} has paid {extra} times too often"
            assert member.num_kills or not extra

    # -- what was opened

    def _sums(self) -> None:
        log = self._world.sites / SERVER_FILE
        receipts = receipts_in(AuditLog(log).read(), log) if log.exists() else []
        for receipt in receipts[len(self._receipts) :]:
            self._sum(receipt)
        self._receipts = receipts
        rounds = [receipt.round for receipt in receipts]
        assert rounds == sorted(set(rounds)), "I3: a round was opened twice"

    def _sum(self, receipt: Receipt) -> None:
        number, attempt = receipt.round, receipt.attempt
        assert receipt.run == self.run
        assert len(receipt.survivors) >= FEWEST, "I5"
        assert (number, attempt) not in self._world.aborted, "I6"
        for site in receipt.survivors:
            assert any(self._pays(entry, number) for entry in self._entries(site)), "I2: not paid for"
        before = self._model(number - 1)
        assert before is not None, "I4: made from a model that is not there"
        assert receipt.model == model_digest(before), "I4"
        total = sum(self._world.vectors[site, number, attempt] for site in receipt.survivors)
        assert receipt.aggregate == aggregate_digest(Aggregate(np.asarray(total), len(receipt.survivors)))

    def check_models(self) -> None:
        """I4: each checkpoint is the model that its receipt's sum makes of the one before."""
        for receipt in self._receipts:
            before, after = self._model(receipt.round - 1), self._model(receipt.round)
            if before is None or after is None:  # not kept for so long, or killed on the way
                continue
            sites = receipt.survivors
            total = sum(self._world.vectors[site, receipt.round, receipt.attempt] for site in sites)
            mean = (
                run_of(self._world.text).encoder(before).decode(Aggregate(np.asarray(total), len(sites)), 0.0)
            )
            for name, array in before.items():
                made = np.asarray(array + mean.arrays[name].astype(np.float32))
                assert np.array_equal(made, after[name]), "I4: the model is not the one of this sum"
        rounds = [row["round"] for row in read_rounds(self._world.state / "rounds.jsonl")]
        assert rounds == list(range(1, len(rounds) + 1))

    def _model(self, number: int) -> Arrays | None:
        """The global model after a round, in the order of the task's own."""
        found = Checkpoint.read(self._world.state / "checkpoints" / name_of(number), self.run)
        return arranged(found.progress.arrays, self._world.initial) if found is not None else None
