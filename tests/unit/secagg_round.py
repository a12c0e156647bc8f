"""Honest parties of a secure sum, driven step by step, for the tests of both machines."""

import random

import numpy as np
import pytest

from tacit.errors import ProtocolError
from tacit.secagg.client import ClientMachine
from tacit.secagg.contexts import NO_HEAD, Invitation, roster_digest
from tacit.secagg.members import Member
from tacit.secagg.parameters import Rules
from tacit.secagg.server import ServerMachine
from tacit.update import EncodedUpdate

C_INT, LENGTH = 1024, 100
RULES = Rules(max_corrupt=1, max_dropouts=1, c_int=C_INT)


def invite(n=5, rules=RULES, **changes):
    members = [Member(index, f"site {index}") for index in range(n)]
    fields = {"run": "r", "round": 1, "attempt": 1, "model": NO_HEAD, "config": NO_HEAD, "length": LENGTH}
    fields |= {"roster": roster_digest(members), "num_invited": n, "rules": rules}
    invitation = Invitation(**{**fields, **changes})
    return invitation, members


def vector(index):
    values = np.random.default_rng(index).integers(-C_INT, C_INT + 1, LENGTH)
    return EncodedUpdate(values, False)


class Round:
    """Honest parties, driven step by step."""

    def __init__(self, n=5, rules=RULES, seed=0):
        self.invitation, members = invite(n, rules)
        self.server = ServerMachine(self.invitation, members)
        self.clients = [ClientMachine(m, random.Random(100 * seed + m.index).randbytes) for m in members]

    def keys(self, present=None):
        for client in self.clients if present is None else [self.clients[i] for i in present]:
            self.server.collect_setup(client.setup(self.invitation))
        return self

    def vectors(self, absent=()):
        self.requests = self.server.mask_requests()
        for index, request in self.requests.items():
            if index not in absent:
                self.server.collect_masked(self.clients[index].mask(request, vector(index)))
        return self

    def seeds(self, absent=()):
        self.requests = self.server.unmask_requests()
        for index, request in self.requests.items():
            if index not in absent:
                self.server.collect_unmask(self.clients[index].unmask(request))
        return self


def reason_of(call, *arguments):
    with pytest.raises(ProtocolError) as error:
        call(*arguments)
    return error.value.reason
