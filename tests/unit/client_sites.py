"""Site folders on disk, an experiment over them, and a server's side of a round, for the tests of the client."""

import hashlib
from dataclasses import replace
from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np
import tomli_w
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client import submission
from client.app import app
from client.participant import Participant, Run
from client.sessions import FolderSessions, MemorySessions
from client.site import Site
from simulations.enrolment import VALIDITY, roster_of
from simulations.local_grid import RUN_ID, identify_process
from tacit import config
from tacit.secagg.contexts import Invitation, model_digest, text_digest
from tacit.secagg.identity import Identity
from tacit.secagg.keys import KeyPair
from tacit.secagg.members import Member
from tacit.secagg.messages import SetupRequest
from tacit.secagg.parameters import Rules
from tacit.secagg.roster import RosterMember
from tacit.secagg.server import ServerMachine
from tacit.secagg.signed_roster import SignedRoster
from tacit.tasks.weights import initial_arrays

LABELS = ("north", "south", "west")
DECLARED = 40
HEADER = "age,dose,ward,y,split\n"
CANARY = "CANARY-7731"
POLICY = {"min_honest": 2}
SINGLE = {"require_secure_aggregation": False, "allow_single_updates": True}

TABLES = {
    "name": "wards",
    "seed": 3,
    "device": "cpu",
    "data": {
        "source": "csv",
        "path": "unused.csv",
        "schema": {
            "label": "y",
            "split": "split",
            "columns": {
                "age": {"kind": "numeric", "range": [0.0, 100.0]},
                "dose": {"kind": "numeric", "center": 1.0, "scale": 0.5},
                "ward": {"kind": "categorical", "categories": ["a", "b"]},
            },
        },
    },
    "task": {"model": {"name": "logistic"}},
    "training": {"rounds": 4, "local_steps": 3, "sampling_rate": 0.5, "learning_rate": 0.5},
    "secure_aggregation": {"max_corrupt": 1, "max_dropouts": 0},
    "federation": {"sites": [{"label": label, "rows": DECLARED} for label in LABELS]},
}
RECORD = {"epsilon": 2.0, "delta": 1e-3, "reserve": 0.0}


def experiment(private=True, **changes):
    """The experiment; a key `a__b` replaces one field of a table."""
    tables = {**TABLES, **({"privacy": {"record": RECORD}} if private else {})}
    for key, value in changes.items():
        head, _, rest = key.partition("__")
        tables[head] = merged(tables.get(head, {}), rest, value) if rest else value
    return config.parse(tables, source="")


def merged(table, path, value):
    head, _, rest = path.partition("__")
    return {**table, head: merged(table.get(head, {}), rest, value) if rest else value}


def rows(seed, train=DECLARED, test=10):
    """A site's file: what the cells say has something to do with the label."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(train + test):
        y = int(rng.integers(2))
        age, dose = rng.normal(40 + 20 * y, 12), rng.normal(1 + 0.3 * y, 0.4)
        split = "train" if i < train else "test"
        lines.append(f"{age:.2f},{dose:.3f},{'ab'[int(rng.integers(2))]},{y},{split}\n")
    return HEADER + "".join(lines)


def write_site(folder, label="north", data=None, policy=POLICY, durable=False):
    folder.mkdir(mode=0o700, parents=True)
    fields = {"label": label, "data_set": f"wards/{label}", "durable": durable}
    (folder / "site.toml").write_text(tomli_w.dumps(fields))
    (folder / "data.csv").write_text(rows(LABELS.index(label)) if data is None else data)
    if policy is not None:
        (folder / "policy.toml").write_text(tomli_w.dumps(policy))
    if label in LABELS:
        Identity.create(folder / "identity.key", fixed(label))
        (folder / "roster.json").write_bytes(signed_roster().encode())
    return folder


def fixed(name):
    """A source of the same bytes for the same name, so that sites made one by one know each other."""
    return lambda n: hashlib.sha256(name.encode()).digest()[:n]


SERVER_IDENTITY = Identity.generate(fixed("server"))


@lru_cache
def signed_roster():
    """The three sites, signed by each of them."""
    identities = [Identity.generate(fixed(label)) for label in LABELS]
    enrolled = tuple(
        RosterMember(Member(i, label, identity.public), date.today() + VALIDITY, DECLARED)
        for i, (label, identity) in enumerate(zip(LABELS, identities, strict=True))
    )
    signed = SignedRoster(roster_of(experiment(), enrolled, SERVER_IDENTITY.public))
    for identity in identities:
        signed = signed.sign(identity)
    return signed


def write_sites(root, policy=POLICY):
    return [write_site(root / label, label, policy=policy) for label in LABELS]


def participant(folder, experiment, *, on_disk=False):
    """A fresh participant: what a restarted process has."""
    sessions = FolderSessions(folder) if on_disk else MemorySessions()
    return Participant(Run(experiment.to_toml()), Site.open(folder), sessions)


def participants(run, folders):
    """Several sites in one process, which share what is heavy, as a simulation does."""
    return [Participant(run, Site.open(folder), MemorySessions()) for folder in folders]


def model(experiment, seed=None):
    task = Run(experiment.to_toml()).task
    private = experiment.privacy.record is not None
    return initial_arrays(task, private=private, seed=experiment.seed if seed is None else seed)


SERVER_KEY = KeyPair(bytes(range(32)))


def invitation(run, arrays, *, round_number=1, attempt=1, run_id="run-1", **changes):
    """The fields of M0 as an honest server makes them."""
    made = Invitation(
        roster=signed_roster().roster.digest(),
        run=run_id,
        round=round_number,
        attempt=attempt,
        model=model_digest(arrays),
        config=text_digest(run.experiment.to_toml()),
        length=run.encoder(arrays).layout.size,
        num_invited=len(run.experiment.federation.sites),
        rules=Rules.of(run.experiment.secure_aggregation, run.plan.sum_noise_multiplier),
        server_pk=SERVER_KEY.public,
    )
    return replace(made, **changes)


def setup_request(run, arrays, **fields):
    """M0 as an honest server sends it."""
    return SetupRequest(invitation(run, arrays, **fields)).signed(SERVER_IDENTITY).encode()


class Round:
    """An honest server and real clients; the server's side can stop after any phase."""

    def __init__(self, clients, arrays, **fields):
        self.clients, self.arrays = clients, arrays
        self.invitation = invitation(clients[0].run, arrays, **{"num_invited": len(clients), **fields})
        self.indices = [LABELS.index(client.site.label) for client in clients]
        members = [signed_roster().roster.members[i] for i in self.indices]
        self.machine = ServerMachine(self.invitation, members, SERVER_IDENTITY, SERVER_KEY)
        self.request = self.machine.setup_request()

    def by_index(self, requests):
        return [(client, requests[i]) for client, i in zip(self.clients, self.indices, strict=True)]

    def keys(self):
        """M0 and M1: everybody has keys and shares."""
        for client in self.clients:
            self.machine.collect_setup(submission.setup(client, self.request, self.arrays))
        self.deal_requests = self.machine.deal_requests()
        for client, request in self.by_index(self.deal_requests):
            self.machine.collect_dealt(submission.deal(client, request))
        self.mask_requests = self.machine.mask_requests()
        return self

    @property
    def mask_request(self):
        """That of the first client."""
        return self.mask_requests[self.indices[0]]

    def vectors(self):
        for client, request in self.by_index(self.mask_requests):
            self.machine.collect_masked(*submission.mask(client, request))
        self.confirm_requests = self.machine.confirm_requests()
        return self

    def sum(self):
        for client, request in self.by_index(self.confirm_requests):
            self.machine.collect_confirmed(submission.confirm(client, request))
        for client, request in self.by_index(self.machine.unmask_requests()):
            self.machine.collect_unmask(submission.unmask(client, request))
        return self.machine.aggregate()


def message(kind, arrays=None, *, body=None, run_id="run-1", round_number=1, **records):
    """A message to a client app."""
    identify_process()
    tacit = {"run": run_id, "round": round_number} if body is None else {"body": body}
    content = RecordDict({"tacit": ConfigRecord(tacit), **records})
    if arrays is not None:
        content["arrays"] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    made = Message(content=content, message_type=kind, dst_node_id=2)
    made.metadata.__dict__["_message_id"] = "m1"
    return made


def context(folder: Path, experiment, sessions="memory"):
    text = experiment if isinstance(experiment, str) else experiment.to_toml()
    node = {"site": str(folder), "sessions": sessions}
    return Context(RUN_ID, 2, node, RecordDict(), {"experiment": text})


def answer(folder, experiment, kind, arrays=None, *, sessions="memory", **fields):
    """What the real `ClientApp` answers."""
    return app(message(kind, arrays, **fields), context(folder, experiment, sessions))


def debits(folder, purpose="training"):
    with Site.open(folder).ledger() as ledger:
        return [entry for entry in ledger.entries if entry.purpose == purpose]
