"""Plays a fault list: the `ClientApp` as a server meets it when sites fail and lie, or when it lies itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.app import body, fields
from client.plain import ids
from simulations.faults import STEPS, FaultList
from simulations.lies import PLAYS, Turn
from tacit.secagg.messages import SetupRequest

PLAYED = "faults.jsonl"  # in the server's folder: what was played


class FaultyApp(ClientApp):
    """The real app, but for the messages that the list names.

    Guarantees:
        What is played follows from the list, the seed and the messages of a round, never from a clock or from chance.

    Args:
        app: the real one.
        faults: what is to be played, with the labels of all sites.
        log: gets a line of JSON for each fault that was played, as it is.
    """

    def __init__(self, app: ClientApp, faults: FaultList, log: Path) -> None:
        super().__init__()
        self._app, self._faults, self._log = app, faults, log
        self._now: dict[int, tuple[int, int]] = {}  # site -> round and attempt that it was invited to
        self._earlier: dict[tuple[int, str], RecordDict] = {}
        self._replayed = {fault.phase for fault in faults.faults if fault.kind == "replay"}

    def __call__(self, message: Message, context: Context) -> Message:
        """The answer to a message, honest unless the list says otherwise."""
        phase = STEPS.get(message.metadata.message_type)
        if phase is None:
            return self._app(message, context)
        site = int(str(context.node_config["partition-id"]))
        round_number, attempt = self._when(message, site, phase)
        label, earlier = self._faults.labels[site], self._earlier.get((site, phase))

        def handle(asked: Message) -> Message:
            answer = self._app(asked, context)
            if phase in self._replayed and not answer.has_error():
                self._earlier[site, phase] = answer.content
            return answer

        found = self._faults.at(label, round_number, attempt, phase)
        if found is None:
            return handle(message)
        number, fault = found
        draw = self._faults.seed, fault.draw or number
        random, steady = (
            np.random.Generator(np.random.PCG64(place))
            for place in ([*draw, round_number, attempt, site], [*draw, site])
        )
        turn = Turn(message, context, fault, handle, earlier, random, steady, round_number)
        answer, happened = PLAYS[fault.kind](turn)
        self._note(fault=number, round=round_number, attempt=attempt, site=label, happened=happened)
        return answer

    def _when(self, message: Message, site: int, phase: str) -> tuple[int, int]:
        """Round and attempt that a message is of."""
        if phase == "training":
            return ids(fields(message))[1], 1
        if phase == "keys":
            invitation = SetupRequest.decode(body(message)).invitation
            self._now[site] = invitation.round, invitation.attempt
        return self._now.get(site, (0, 0))

    def _note(self, **played: Any) -> None:
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(played) + "\n")


def read_played(log: Path) -> list[dict[str, Any]]:
    """The complete lines that a `FaultyApp` wrote, none where there is no such file."""
    if not log.exists():
        return []
    complete, _, _ = log.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in complete.split("\n")] if complete else []
