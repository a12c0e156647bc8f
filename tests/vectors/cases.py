"""What the vectors are about: name, kind and what is given. Everything secret comes from fixed texts."""

from __future__ import annotations

import hashlib
from typing import Any

from tests.vectors.product import identity_of, roster_of

Json = dict[str, Any]


def seeded(text: str, size: int = 32) -> str:
    """Bytes of a text, hexadecimal."""
    return hashlib.shake_256(text.encode()).hexdigest(size)


RULES = {"c": 1, "D": 1, "C_int": 2**16}
BASE: Json = {"seed": "tacit", "run": "run-1", "round": 1, "attempt": 1, "length": 9, "roster": [4, 1]}
THREE = BASE | {"n": 3, "roster": [3, 0], "rules": {"c": 1, "D": 0, "C_int": 42}}
FIVE = BASE | {"n": 5, "rules": RULES | {"C_int": 2**20}}
ATTEMPTS = {
    "three clients, words of 8 bits": THREE,
    "three clients, words of 17 bits, the second attempt, another round": THREE
    | {"attempt": 2, "round": 7, "length": 11, "rules": {"c": 1, "D": 0, "C_int": 2**14}},
    "five clients, 24 bits, one sends no vector: its mask key is opened": FIVE | {"gone": {"M2": [1]}},
    "five clients, 32 bits with noise, one deals nothing": FIVE
    | {"rules": RULES | {"C_int": 2**24, "z": 6.0}, "gone": {"M1": [3]}},
    "five clients, 32 bits with noise, one never answers, one does not sign": FIVE
    | {"rules": RULES | {"C_int": 2**24, "z": 6.0}, "gone": {"M0": [3], "M3": [2]}},
    "a ring of 201, 25 bits, one sends no vector": BASE | {"n": 201, "rules": RULES, "gone": {"M2": [7]}},
}

WORDS = [0, 1, 2**32 - 1, 0x12345678, 0x80000000, 0xFFFF, 0x10000, 0xDEADBEEF, 0xFF, 0x1FF, 0xA5A5A5A5]


def primitives() -> dict[str, tuple[str, Json]]:
    """Encodings, keys, shares, words."""
    arrays = [
        {"name": "w", "dtype": "<f4", "shape": [2, 3], "values": [0.0, 1.5, -2.25, 3.0, 1e-3, -0.0]},
        {"name": "Größe", "dtype": "<f8", "shape": [], "values": [0.1]},
        {"name": "mask", "dtype": "|u1", "shape": [4], "values": [0, 1, 128, 255]},
        {"name": "nothing", "dtype": "<f4", "shape": [0, 3], "values": []},
    ]
    items = [
        ["data", ""],
        ["data", "00ff"],
        ["text", "Zürich ✓"],
        ["number", 0],
        ["number", 2**64 - 1],
        ["real", 0.1],
        ["real", -1.5e300],
        ["numbers", []],
        ["numbers", [0, 5, 2**32 - 1]],
    ]
    key_names = ("enc_u", "enc_v", "mask_u", "mask_v", "server", "ctx1", "ctx2")
    agreement: Json = {name: seeded(name) for name in key_names}
    deal: Json = {"ctx1": seeded("ctx1"), "u": 4, "t": 3, "b": "ff" * 32, "mask": seeded("mask secret")}
    return {
        "canonical bytes": ("canonical", {"label": "ctx0", "items": items}),
        "digest of a model": ("model", {"arrays": arrays}),
        "digest of a configuration": (
            "config",
            {"experiment": 'name = "x"\n', "scaling": '{"age":[50.0,10.0]}', "clip": "0x1.8p+0"},
        ),
        "keys that two agree on": ("keys", agreement | {"u": 3, "v": 17, "packed": seeded("packed", 50)}),
        "words of a stream": ("prg", {"seed": seeded("stream"), "length": 19}),
        "shares": (
            "shamir",
            {"secret": "ff" * 32, "t": 4, "members": [0, 1, 2, 6, 200, 65535], "draws": "coefficients"},
        ),
        "rows of a dealer": (
            "dealing",
            deal | {"draws": "dealing", "enc": {str(v): seeded(f"enc {v}") for v in (0, 4, 9, 300)}},
        ),
        "packed words": ("packing", {"words": WORDS, "bits": [8, 9, 15, 16, 17, 23, 24, 25, 31, 32]}),
        "an identity": (
            "identity",
            {
                "secret": seeded("identity"),
                "label": "Klinik Süd",
                "statement": ["M1/answer", seeded("ctx1"), 12, seeded("body")],
            },
        ),
        "an invitation": ("invitation", {"secret": seeded("server"), "invitation": an_invitation()}),
        "a journal with a write cut short": ("journal", {"run": "run-1", "events": events()}),
        "a journal that has seen receipts": ("journal", {"run": "run-1", "events": seen_receipts()}),
        "receipts": ("receipts", {"secret": seeded("server"), "receipts": sums(), "shown": SHOWN}),
    }


def cohorts_and_rings() -> dict[str, tuple[str, Json]]:
    """What follows from the size of a cohort."""
    cohorts = [
        *([n, {"c": 1, "D": 1, "C_int": 2**16}] for n in (2, 3, 4, 5, 200, 201)),
        *([100, {"c": 10, "D": 20, "C_int": 2**16, "z": z}] for z in (0.0, 1.9, 6.0, 14.0)),
        [100, {"c": 33, "D": 33, "C_int": 2**24, "z": 1.0}],
        [200, {"c": 66, "D": 66, "C_int": 1}],
        [300, {"c": 100, "D": 30, "C_int": 2**10}],
        [1000, {"c": 50, "D": 50, "C_int": 2**16}],
        [1000, {"c": 100, "D": 100, "C_int": 2**20, "z": 0.7}],
        [129, {"c": 1, "D": 0, "C_int": 2**24, "n_max": 128}],
        [20, {"c": 1, "D": 0, "C_int": 2**24, "z": 100.0}],
    ]
    return {
        "parameters of a cohort": ("parameters", {"cohorts": cohorts}),
        "order of a ring": (
            "graph",
            {
                "members": list(range(1, 3 * 210, 3)),
                "rules": {"c": 2, "D": 1, "C_int": 1},
                "ctx1": seeded("ctx1"),
                "of": [1, 4, 313],
            },
        ),
    }


def an_invitation() -> Json:
    """Every field with a value of its own."""
    names = ("roster", "model", "config", "server_pk", "receipt_head")
    return {name: seeded(name) for name in names} | {
        "run": "Lauf-ß",
        "round": 12,
        "attempt": 3,
        "length": 1_000_003,
        "num_invited": 40,
        "rules": {"c": 3, "D": 5, "C_int": 2**18, "z": 0.3, "n_min": 20, "n_max": 50},
    }


# places of the receipts that are shown, and that of the head beside them; -1: there are none
SHOWN: list[list[Any]] = [
    [[], -1],
    [[0], 0],
    [[0, 1, 2], 2],
    [[1, 2], 2],
    [[], 0],
    [[0, 1, 2], -1],
    [[0, 1], 2],
    [[0, 2], 2],
    [[1, 0], 0],
    [[0, 0], 0],
    [[0, 1, 2] * 3, 2],
]


def sums() -> list[Json]:
    """What three receipts are about."""
    return [
        {name: seeded(f"{name} {i}") for name in ("context", "roster", "model")}
        | {"run": "Lauf-ß", "round": i, "attempt": 3 - i, "epsilon": ["inf", "0", "1.25"][i]}
        | {"survivors": [0, 2, 11][: i + 1], "sum": [[], [-1, 2**40, 7], [-(2**63), 2**63 - 1]][i]}
        | {"confirmations": {str(j): seeded("a") + seeded("b") for j in (11, 2)[:i]}}
        for i in range(3)
    ]


def seen_receipts() -> list[list[Any]]:
    """The beginning, the same again, a gap; a write cut short changes nothing about them."""
    digests = {str(i): seeded(f"receipt {i}") for i in range(12)}
    some = {i: digests[i] for i in ("1", "2", "3")}
    model, config, ctx0 = seeded("model"), seeded("config"), seeded("ctx0")
    return [
        ["receipts", {"0": bytes(32).hex()}],
        ["receipts", some],
        ["receipts", some],
        ["torn", b'{"receipts":[9'.hex()],
        ["receipts", {i: digests[i] for i in ("10", "11")}],
        ["answered", "run-1", 1, 1, model, config, ctx0],
    ]


def events() -> list[list[Any]]:
    """Two attempts, one of them lost; then another run."""
    model, config, ctx2 = seeded("model"), seeded("config"), seeded("ctx2")
    one, two, three = (seeded(f"ctx0 {i}") for i in range(3))
    return [
        ["answered", "run-1", 1, 1, model, config, one],
        ["peers", {str(i): i + 1 for i in range(12)}],
        ["masked", one, ctx2],
        ["signed", ctx2, [0, 2, 11]],
        ["signed", ctx2, [0, 2, 11]],
        ["answered", "run-1", 1, 2, model, config, two],
        ["torn", b'{"peers":{"0":'.hex()],
        ["answered", "größer", 0, 1, model, config, three],
        ["peers", {str(i): i + 5 for i in range(12)}],
    ]


def rosters() -> dict[str, tuple[str, Json]]:
    """A first epoch by all its members, and one after it by enough of them; one by a root."""
    secrets = {str(i): seeded(f"member {i}") for i in range(6)}

    def member(i: int) -> Json:
        key = identity_of(secrets[str(i)]).public.hex()
        return {"label": f"Standort {i} é", "key": key, "expires": f"203{i}-02-28", "rows": 1000 * i}

    first: Json = {
        "epoch": 1,
        "previous": bytes(32).hex(),
        "members": [member(i) for i in range(5)],
        "revoked": [],
        "struck": [],
        "server_key": identity_of(seeded("server")).public.hex(),
        "root_key": "",
        "clients": [4, 5],
        "c": 1,
        "D": 1,
        "rounds": [1, 100],
        "clip": [0.1, 10.0],
        "noise": [0.0, 2.5],
        "epsilon_record": 0.0,
        "epsilon_client": 8.0,
        "schemas": [],
        "bundles": [],
    }
    second = first | {
        "epoch": 2,
        "previous": roster_of(first).digest().hex(),
        "members": [member(0) | {"expires": "2040-12-31", "rows": 7}, *(member(i) for i in range(1, 6))],
        "revoked": [0],
        "struck": [3],
        "root_key": identity_of(seeded("root")).public.hex(),
        "schemas": sorted([seeded("schema b"), seeded("schema a")]),
        "bundles": [seeded("bundle")],
        "epsilon_record": 3.5,
    }
    third = second | {"epoch": 3, "previous": roster_of(second).digest().hex(), "struck": [3, 4]}
    third |= {"clients": [3, 6], "D": 0}
    some = {i: secrets[i] for i in ("0", "1", "2", "4", "5")}  # the last is new: it does not count
    return {
        "the first roster": (
            "roster",
            {"roster": first, "signers": {str(i): secrets[str(i)] for i in range(5)}},
        ),
        "the next roster": ("roster", {"roster": second, "before": first, "signers": some}),
        "a roster by its root": (
            "roster",
            {"roster": third, "before": second, "signers": {str(2**32 - 2): seeded("root")}},
        ),
    }
