"""Flower's own SecAgg+ by its parts: client and server, called as Flower's mod and workflow call them.

Flower 1.41: `flwr.client.mod.secure_aggregation.secaggplus_mod` at the client, the unmask stage of
`flwr.server.workflow.SecAggPlusWorkflow` at the server. What they do with messages and records is left out, which is in
their favour. Seconds are CPU seconds of the process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import bytes_to_ndarray, ndarray_to_bytes, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)

MODULUS = 2**32
_RANGE = 2**22
_CHUNK = 16  # bytes that Flower shares at a time


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process, all its threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def client_seconds(n: int, threshold: int, vector: np.ndarray) -> float:
    """One client among n on the complete graph, nobody drops out.

    Args:
        n: clients.
        threshold: shares that open a secret.
        vector: shape (d,), float32: the update.
    """
    peers = {nid: (generate_key_pairs(), generate_key_pairs()) for nid in range(1, n)}
    state = SecAggPlusState(nid=0)
    setup = {
        Key.SAMPLE_NUMBER: n,
        Key.SHARE_NUMBER: n,
        Key.THRESHOLD: threshold,
        Key.CLIPPING_RANGE: 8.0,
        Key.TARGET_RANGE: _RANGE,
        Key.MOD_RANGE: MODULUS,
        Key.MAX_WEIGHT: 1000.0,
    }
    spent = cpu_seconds(lambda: _setup(state, setup))
    keys = {str(nid): [public_key_to_bytes(pk) for _, pk in pairs] for nid, pairs in peers.items()}
    keys["0"] = [state.pk1, state.pk2]
    spent += cpu_seconds(lambda: _share_keys(state, keys))

    own = bytes_to_public_key(state.pk2)
    dealt = {nid: _row(nid, pairs[1][0], own) for nid, pairs in peers.items()}
    rows = {Key.CIPHERTEXT_LIST: list(dealt.values()), Key.SOURCE_LIST: list(dealt)}
    parameters = ndarrays_to_parameters([vector])
    spent += cpu_seconds(lambda: _collect_masked_vectors(state, rows, 100, parameters))
    alive = {Key.ACTIVE_NODE_ID_LIST: list(range(n)), Key.DEAD_NODE_ID_LIST: []}
    return spent + cpu_seconds(lambda: _unmask(state, alive))


def server_seconds(n: int, threshold: int, length: int, dropped: int = 0, sample: int | None = None) -> float:
    """The server's sum over n - `dropped` vectors and its unmasking, complete graph; keys are exchanged already.

    Args:
        n: clients that dealt shares.
        threshold: shares that open a secret.
        length: d.
        dropped: of them sent no vector.
        sample: how many clients of each sort are worked through, times what that stands for; None = all. Every client
            of a sort costs the same.
    """
    alive = n - dropped
    some = min(alive, sample or alive)
    spent = cpu_seconds(lambda: _sum(_masked(length), some)) * alive / some
    secrets = [os.urandom(32) for _ in range(some)]
    spent += _opened(secrets, n, alive, threshold, lambda s: _own(s, length)) * alive / some
    if dropped:
        some = min(dropped, sample or dropped)
        peers = [public_key_to_bytes(generate_key_pairs()[1]) for _ in range(n - 1)]
        keys = [private_key_to_bytes(generate_key_pairs()[0]) for _ in range(some)]
        spent += _opened(keys, n, alive, threshold, lambda s: _pairs(s, peers, length)) * dropped / some
    return spent


def mask_seconds(length: int, repeats: int = 11) -> float:
    """One mask, made and added."""
    return median(cpu_seconds(lambda: _own(os.urandom(32), length)) for _ in range(repeats))


def _row(nid: int, secret: object, public: object) -> bytes:
    """What a peer has sealed for client 0; its shares need only be as long as real ones."""
    share, key_share = bytes(4 + 3 * _CHUNK), bytes(4 + 20 * _CHUNK)
    plain = share_keys_plaintext_concat(nid, 0, share, key_share)
    return encrypt(generate_shared_key(secret, public), plain)


def _masked(length: int) -> list[bytes]:
    """A client's masked vector as it comes in: the weight and d words."""
    words = np.random.default_rng(0).integers(0, MODULUS, length)
    return [ndarray_to_bytes(np.array([1])), ndarray_to_bytes(words)]


def _sum(vector: list[bytes], times: int) -> None:
    total = None
    for _ in range(times):
        arrays = [bytes_to_ndarray(part) for part in vector]
        total = arrays if total is None else parameters_addition(total, arrays)
    parameters_mod(total, MODULUS)


def _opened(
    secrets: list[bytes], n: int, alive: int, threshold: int, remove: Callable[[bytes], object]
) -> float:
    """Joins every secret from the shares of all that are alive, as Flower does, and removes what hides behind it."""
    shares = [create_shares(secret, threshold, n)[:alive] for secret in secrets]

    def work() -> None:
        for mine in shares:
            remove(combine_shares(mine))

    return cpu_seconds(work)


def _own(seed: bytes, length: int) -> None:
    mask = pseudo_rand_gen(seed, MODULUS, [(1,), (length,)])
    parameters_subtraction(_total(length), mask)


def _pairs(secret: bytes, peers: list[bytes], length: int) -> None:
    for peer in peers:
        shared = generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(peer))
        parameters_addition(_total(length), pseudo_rand_gen(shared, MODULUS, [(1,), (length,)]))


_totals: dict[int, list[np.ndarray]] = {}


def _total(length: int) -> list[np.ndarray]:
    """The running sum; what is in it does not change what an addition costs."""
    return _totals.setdefault(length, [np.zeros(1, np.int64), np.zeros(length, np.int64)])
