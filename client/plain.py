"""A single update in the clear, and the one place that makes bytes of it.

It leaves only where the site's own policy says `allow_single_updates = true`: in a simulation without secure
aggregation or with the ideal sum, or where the server is trusted. The privacy statement then says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from tacit.encoding import WEIGHT
from tacit.errors import ProtocolError, Refused
from tacit.secagg.contexts import check_run
from tacit.secagg.parameters import Rules
from tacit.secagg.ring import clip_norm
from tacit.tasks.weights import Arrays
from tacit.update import EncodedUpdate, LocalUpdate

if TYPE_CHECKING:
    from client.participant import Participant


@dataclass(frozen=True, repr=False)
class ClippedUpdate:
    """One client's update, cut at the public update norm, visible to whoever receives it.

    Guarantees:
        It cannot be made at a site whose policy does not allow single updates.
    """

    arrays: dict[str, NDArray[np.float32]]
    weight: float
    metrics: dict[str, float]

    @classmethod
    def of(cls, participant: Participant, arrays: Arrays, update: LocalUpdate) -> ClippedUpdate:
        """The new local model: received plus delta.

        Raises:
            Refused: policy or experiment do not allow it, or a value is not finite.
        """
        require_permission(participant)
        encoder = participant.run.encoder(arrays)
        cut, _ = clip_norm(encoder.layout.flatten(update.delta), encoder.clip)
        delta = encoder.layout.unflatten(cut)
        model = {name: np.asarray(arrays[name] + delta[name], dtype=np.float32) for name in arrays}
        return cls(model, update.weight, dict(update.metrics))

    def __repr__(self) -> str:
        return f"<ClippedUpdate: {len(self.arrays)} arrays>"

    def to_records(self) -> RecordDict:
        """As Flower's strategies expect it: arrays, and metrics with the weight."""
        metrics = {WEIGHT: self.weight, **self.metrics}
        return RecordDict(
            {
                "arrays": ArrayRecord({name: Array(a) for name, a in self.arrays.items()}),
                "metrics": MetricRecord(dict(metrics)),
            }
        )


def require_permission(participant: Participant) -> None:
    """Raises `Refused` unless the site's own policy allows single updates and no secure sum was promised."""
    if not participant.site.policy.allow_single_updates:
        raise Refused("single-update", "policy.toml does not say allow_single_updates = true")
    secure = participant.run.experiment.secure_aggregation
    if secure.enabled and secure.engine == "protocol":
        raise Refused("single-update", "the experiment says that updates leave under the secure sum alone")


def update(participant: Participant, fields: ConfigRecord, arrays: Arrays) -> RecordDict:
    """Guard, train, debit, send: the whole round of one client without a secure sum."""
    require_permission(participant)
    if participant.run.plan.client is not None:
        raise Refused(
            "single-update", "what is promised for clients holds for the sum of their encoded vectors"
        )
    run_id, round_number = ids(fields)
    participant.guard(run_id, round_number, arrays)
    participant.count_round()
    local = participant.update(run_id, round_number, arrays)
    participant.debit(run_id, round_number, attempt=1)
    return ClippedUpdate.of(participant, arrays, local).to_records()


def encoded(participant: Participant, fields: ConfigRecord, arrays: Arrays) -> RecordDict:
    """The same with the secure sum's encoding: what the ideal functionality adds up."""
    require_permission(participant)
    vector = contribution(participant, *ids(fields), arrays)
    record = ArrayRecord({"values": Array(vector.values)})
    return RecordDict({"encoded": record, "tacit": ConfigRecord({"clipped": vector.clipped})})


def contribution(participant: Participant, run_id: str, round_number: int, arrays: Arrays) -> EncodedUpdate:
    """Guard, train, encode, add noise, debit: one client's vector. The caller is the ideal sum.

    The share of the noise is that of a cohort that is complete, as it is in a first attempt.
    """
    participant.guard(run_id, round_number, arrays)
    participant.count_round()
    vector = participant.encode(round_number, arrays, participant.update(run_id, round_number, arrays))
    experiment, noise = participant.run.experiment, participant.run.plan.sum_noise_multiplier
    if noise > 0:
        share = Rules.of(experiment.secure_aggregation, noise).parameters(experiment.cohort_size).noise_share
        vector = participant.noised(vector, round_number, 1, share)
    participant.debit(run_id, round_number, attempt=1)
    return vector


def ids(fields: ConfigRecord) -> tuple[str, int]:
    """Tacit's run id and the round number of a message; `ProtocolError` where it names none."""
    run_id, round_number = fields.get("run"), fields.get("round")
    if not isinstance(run_id, str) or not isinstance(round_number, int):
        raise ProtocolError("fields", "the message names no run or round")
    check_run(run_id)
    return run_id, round_number
