"""What the fuzzer begins with: honest inputs, made of the cases of the golden vectors, and what it has found before.

Seeds are made anew each time, so that they fit the protocol as it is. Findings are kept in `corpus/<NAME>.txt`, an
input to a line: hexadecimal, and behind it what was wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import save

from client.sessions import Session
from tacit.privacy.accountant import Event
from tacit.secagg import ring
from tacit.secagg.identity import Identity
from tacit.secagg.messages import Complaint
from tacit.secagg.signed_roster import SignedRoster
from tacit.update import EncodedUpdate
from tests.fuzz.files import folder
from tests.fuzz.messages import KINDS, decoded
from tests.fuzz.storage import FEDERATION, one_record
from tests.fuzz.targets import TARGETS
from tests.vectors.attempt import STEPS, Attempt
from tests.vectors.cases import FIVE, THREE, primitives, rosters, seeded
from tests.vectors.product import identity_of, journal, roster_of

CORPUS: Final = Path(__file__).parent / "corpus"
SCENARIOS: Final = Path(__file__).parents[2] / "simulations" / "scenarios"


def inputs(name: str) -> list[bytes]:
    """Seeds and findings of a target."""
    return [*SEEDS[name](), *found(name)]


def found(name: str) -> Iterator[bytes]:
    """What the fuzzer has found before."""
    path = CORPUS / f"{name}.txt"
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        yield bytes.fromhex(line.partition("#")[0])


@cache
def messages() -> tuple[tuple[int, bytes], ...]:
    """One message of each kind and attempt, with the number of its kind."""
    sent = [(6, Complaint(bytes(32), 1, 2).signed(identity_of(seeded("identity"))).encode())]
    for described in (THREE, FIVE):
        asked = [Attempt(described).until(step).sent[f"{step}/request"] for step in STEPS]
        answers = Attempt(described).run()
        for value in (*asked, *(answers[f"{step}/answer"] for step in STEPS)):
            one = value[0] if isinstance(value, Mapping) else value
            sent += [(number, one) for number, kind in enumerate(KINDS) if decoded(kind, one)]
    return tuple(sent)


def envelopes() -> list[bytes]:
    return [bytes([kind]) + message for kind, message in messages()]


def shares() -> list[bytes]:
    pair = bytes([0]) + bytes(range(1, 33)) + bytes([0]) + bytes(range(40, 72)) + bytes(32)
    return [b"\0" + pair, b"\0" + pair + b"\x20\1", b"\1" + pair[:66], b"\2" + bytes(97), b"\3" + bytes(162)]


def packed() -> list[bytes]:
    words = np.arange(19, dtype=np.uint32)
    return [bytes([bits, 0, 19]) + ring.pack(words, bits) for bits in (8, 13, 17, 24, 31, 32)]


@cache
def signed_rosters() -> tuple[SignedRoster, ...]:
    """Those of the vectors, with their signatures."""
    made = []
    for _, given in rosters().values():
        signed = SignedRoster(roster_of(given["roster"]))
        for secret in given["signers"].values():
            signed = signed.sign(identity_of(secret))
        made.append(signed)
    return tuple(made)


def roster_files() -> list[bytes]:
    files = [b"\1\0" + signed.encode() for signed in signed_rosters()]
    signers = (
        (0b11111, 0b01111),
        (0b110111, 0b10111, 0b100111),
        (0b1000000, 0b11111),
    )  # enough; some too few
    return files + [
        bytes([0, mask]) + signed.roster.encode()
        for masks, signed in zip(signers, signed_rosters(), strict=True)
        for mask in masks
    ]


def configurations() -> list[bytes]:
    policy = 'epsilon_ceiling = 2.5\ndelta = 1e-6\nmin_honest = 3\nallowed_tasks = ["tabular", "a:b"]\n'
    terms = 'app = "a:b"\nrounds = 3\n[train_metrics]\nloss = 4.0\n[secure_aggregation]\nmax_dropouts = 1\n'
    site = 'label = "s1"\ndata_set = "d"\ndurable = false\n'
    override = "training.rounds=3\x1fprivacy.record={epsilon=1.0, delta=1e-4}\x1fname=b"
    texts = [(1, policy), (2, terms), (3, site), (5, override)]
    return [
        *(bytes([0]) + path.read_bytes() for path in sorted(SCENARIOS.glob("*.toml"))),
        *(bytes([4]) + path.read_bytes() for path in sorted((SCENARIOS / "faults").glob("*.toml"))),
        *(bytes([kind]) + text.encode() for kind, text in texts),
        *(b"\0name = " + nested * 700 for nested in (b"[", b"{a = ")),
    ]


def kept() -> list[bytes]:
    """A file of each kind that Tacit keeps; the number is its place in `storage.STORED`."""
    journalled = journal(primitives()["a journal with a write cut short"][1])["file"].encode("latin-1")
    head, beyond = (f"{n:020d} {one_record()[1]['hash']}\n".encode() for n in (1, 2))
    event = Event("gaussian", 1.5).to_dict()
    debit = {"time": "2030-01-01T00:00:00+00:00", "run": "r", "round": 1, "attempt": 1, "purpose": "training"}
    debit |= {"unit": "record", "event": event, "delta": 1e-5}
    events = [{"answered": ["r", 1, 1, *"abc"]}, {"peers": {"1": 2}}, {"masked": ["c", "d"]}, {"lost": 1}]
    signed = signed_rosters()[0]
    epoch = {
        "roster": signed.roster.encode().hex(),
        "signatures": {str(i): s.hex() for i, s in signed.signatures.items()},
    }
    state = Attempt(THREE).until("M3").clients[0].export()
    row = (162).to_bytes(4)  # of bytes: the shares of a dealer
    twice = state.replace((1).to_bytes(8) + row, (0).to_bytes(8) + row)
    run = {"run": "r", "starts": 1, "config": hashlib.sha256(b"name = 'x'").hexdigest()}
    values: list[tuple[int, bytes]] = [
        (0, journalled), (1, journalled), (2, head), (2, beyond),
        (3, _lines(debit, debit)), (4, _lines(*events)), (5, _lines(epoch)),
        (6, _checkpoint(1)), (6, _checkpoint(0)), (7, state), (7, twice), (8, b"\1" + _session()),
        (9, b'{"round": 2, "attempt": 1, "strikes": [3]}'), (10, json.dumps(run).encode()),
        (11, b'{"outcome": "finished"}'), (12, b'{"round": 1}\n{"round": 2, "epsilon": 0.5}\n'),
        (13, b'{"version": 1}'), (14, _pem()),
        *((reader, b"[" * 3000) for reader in (0, 3, 9, 10, 11, 13)), (12, b"[" * 3000 + b"\n"),
    ]  # fmt: skip
    return [bytes([kind]) + content for kind, content in values]


def _lines(*records: dict[str, Any]) -> bytes:
    return b"\n".join(json.dumps(record).encode() for record in records)


def _checkpoint(fits: int) -> bytes:
    counters = {"run": "run", "round": 3, "best_round": 1, "best_value": 0.5, "stale": 0, "clip": 0.0}
    model = save({"w": np.zeros((2, 3), np.float32)})
    parts = [json.dumps({**counters, "record": None}).encode(), model, model]
    sizes = b"".join(len(part).to_bytes(2) for part in parts)
    manifest = {name: hashlib.sha256(part).hexdigest() for name, part in zip("abc", parts, strict=True)}
    return bytes([fits]) + sizes + b"".join(parts) + json.dumps(manifest).encode()


def _session() -> bytes:
    encoded = EncodedUpdate(np.arange(-2, 3), True)
    session = Session("r", 1, bytes(32), bytes(range(32)), encoded, FEDERATION.client(1), 2, True)
    return session.encode()[32:]


def _pem() -> bytes:
    path = folder() / "seed.key"
    path.unlink(missing_ok=True)
    Identity.create(path, lambda size: bytes(range(size)))
    return path.read_bytes()


def tables() -> list[bytes]:
    header = "plain,log,name,y,split\n"
    rows = '1.5,-1e5,red,0,train\n,?,"1",1,test\n-9,12345678901,1.0,"0",train\n'
    return [
        b"\0" + (header + rows).encode(),
        b"\1" + (header + rows).replace("\n", "\r\n").encode(),
        b"\2" + rows.encode(),
        b"\0\xef\xbb\xbf" + (header + '1,2,"re\nd",1,train\n').encode(),
        b"\0" + (header + "1,2,green,1,train\n").encode(),
        b"\0" + (header + "1,2,red,7,train\n1\n").encode(),
    ]


def histories() -> list[bytes]:
    """Zeros are honest; after so many honest steps a wrong request; restarts, flips, requests out of turn."""
    wrong = [bytes([0, 24, *[0] * honest, 200, 0, which]) for honest in range(5) for which in (7, 25, 42)]
    others = (
        b"\x0c",
        b"\x19" + bytes(range(0, 250, 7)),
        b"\x18" + b"\0\x88\1" * 9,
        b"\x18" + b"\0\xa0\2" * 20,
    )
    return [bytes(8), *wrong, *others, bytes([3, 255]) + hashlib.shake_256(b"history").digest(96)]


def records() -> list[bytes]:
    """The expected invitation under a stranger's name, with the model; with a scaling or a clip norm; nonsense."""
    invitation = bytes([0, 0, 1, 0, 0, 0])  # tacit: a config record with one field, body, unchanged
    model = bytes([1, 1, 1, 0, 0, 0, 0])  # arrays: the model, unchanged
    scaling = bytes([3, 0, 1, 3, 6, 0, 15]) + b'{"age":[50,10]}'
    clip = bytes([4, 0, 1, 4, 6, 0, 3]) + b"1.0"
    ids = bytes([0, 0, 2, 1, 6, 0, 1]) + b"r" + bytes([2, 2, 128, 0, 0, 0, 0, 0, 0, 1])
    words, metrics = bytes([2, 1, 0, 1, 0, 0]), bytes([5, 2, 2, 0, 0, 1, 0])
    made = [bytes([2, 2]) + invitation + model, bytes([2, 3]) + invitation + model + scaling]
    made += [bytes([2, 3]) + invitation + model + clip, bytes([4, 2]) + invitation + words]
    return [
        *made,
        bytes([0, 3]) + ids + model + metrics,
        bytes([1, 2]) + ids + model,
        bytes([6, 1]) + invitation,
    ]


def bridged_records() -> list[bytes]:
    """The same, with what the app is asked for and told."""
    invitation, model = bytes([0, 0, 1, 0, 0, 0]), bytes([1, 1, 1, 0, 0, 0, 0])
    asks, told = bytes([7, 0, 1, 6, 6, 0, 5]) + b"train", bytes([8, 0, 1, 5, 2]) + bytes(8)
    whole = [bytes([0, 4]) + invitation + model + asks + told, bytes([0, 3]) + invitation + model + asks]
    return [
        *whole,
        bytes([0, 3]) + invitation + model + bytes([7, 0, 0]),
        *(bytes([k, 0]) for k in range(1, 9)),
    ]


def round_trips() -> list[bytes]:
    noise = hashlib.shake_256(b"values").digest(400)
    ways = [b"\0" + noise[:90], *(bytes([1, kind]) + noise[kind:] for kind in range(len(KINDS)))]
    ways += [bytes([2, kind]) + message for kind, message in messages()]
    ways += [b"\3\0" + signed_rosters()[1].roster.encode(), b"\3\1" + signed_rosters()[1].encode()]
    zeros = b"\x80" + bytes(7), b"\x7f\xf0" + bytes(6), bytes(8)
    ways += [b"\4" + bytes([count]) + b"\3" * count + b"".join(zeros[:count]) for count in (1, 2, 3)]
    ways += [b"\4\3\0\1\2" + bytes(7) + b"\5" + b"\0\0\0\1x" * 2, b"\0\3\x7f\xf8" + bytes(6) + b"\1"]
    ways += [b"\3\2" + Attempt(THREE).until("M2").clients[0].export()]
    return [*ways, b"\3\3" + (SCENARIOS / "breast_cancer.toml").read_bytes()]


SEEDS: Final[dict[str, Callable[[], list[bytes]]]] = dict(
    zip(
        TARGETS,
        (
            envelopes, shares, packed, roster_files, configurations, kept, tables, histories, histories, records,
            bridged_records, round_trips,
        ),
        strict=True,
    )
)  # fmt: skip
