"""The whole protocol in one process, through the real machines and their bytes: for tests and simulations.

Neither a client nor a server may import this module, because it has both sides in it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from tacit.secagg.client import ClientMachine, RandomBytes
from tacit.secagg.contexts import NO_HEAD, Invitation, roster_digest
from tacit.secagg.members import Member
from tacit.secagg.parameters import Rules
from tacit.secagg.server import ServerMachine
from tacit.update import Aggregate, EncodedUpdate


def secure_sum(
    encoded: Sequence[EncodedUpdate], rules: Rules, random_bytes: RandomBytes = secrets.token_bytes
) -> Aggregate:
    """The sum of the vectors, each of shape (d,), as the protocol computes it.

    Guarantees:
        Bit-equal to `tacit.secagg.ideal.ideal_sum`.
    """
    members = [Member(index, f"client-{index}") for index in range(len(encoded))]
    invitation = Invitation(
        roster=roster_digest(members),
        run="in-process",
        round=1,
        attempt=1,
        model=NO_HEAD,
        config=NO_HEAD,
        length=encoded[0].values.size,
        num_invited=len(members),
        rules=rules,
    )
    server = ServerMachine(invitation, members)
    clients = [ClientMachine(member, random_bytes) for member in members]
    for client in clients:
        server.collect_setup(client.setup(invitation))
    for index, request in server.mask_requests().items():
        server.collect_masked(clients[index].mask(request, encoded[index]))
    for index, request in server.unmask_requests().items():
        server.collect_unmask(clients[index].unmask(request))
    for client in clients:
        client.close()
    return server.aggregate()
