import hashlib
import math
import struct
from fractions import Fraction
from itertools import count

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy.stats import hypergeom

from tacit.errors import ProtocolError
from tacit.secagg import graph as graph_module
from tacit.secagg.degree import FAILURE_BITS, PRIVACY_BITS, most, ring_degree
from tacit.secagg.graph import Graph, shuffled
from tacit.secagg.parameters import Rules

GOLDEN = (0, 6, 5, 7, 3, 4, 9, 8, 1, 2)  # ten clients under a ctx1 of zeros

# n, c = D, bits of privacy -> k, t: the table of the design; 40 bits are for a merely curious server.
TABLE = [
    (1000, 50, 104, 138, 114),
    (1000, 100, 104, 276, 222),
    (10000, 500, 104, 198, 164),
    (10000, 1000, 104, 460, 370),
    (1000, 50, 40, 90, 71),
    (1000, 100, 40, 196, 152),
    (10000, 500, 40, 116, 91),
    (10000, 1000, 40, 278, 215),
]


@pytest.mark.parametrize(("n", "c", "bits", "k", "t"), TABLE)
def test_A7_degree_and_threshold_of_the_ring_are_those_of_the_table(n, c, bits, k, t):
    assert ring_degree(n, c, c, bits) == (k, t)
    if bits == 104:
        parameters = Rules(c, c, 2**10).parameters(n)
        assert (parameters.neighbours, parameters.share_threshold, parameters.present) == (k, t, t)
        assert parameters.threshold == (n + c) // 2 + 1
    assert 2 * t > k + 1 + (t - k // 2 - 1)  # nobody's b and mask_sk both


@pytest.mark.parametrize(("n", "c", "dropouts"), [(201, 2, 2), (500, 25, 25), (1000, 50, 20), (1000, 10, 90)])
def test_A7_no_smaller_ring_would_do(n, c, dropouts):
    """The quantiles by SciPy's floating-point hypergeometric, k by trying every even number."""

    def quantile(special, k, bits):
        allowed = -bits * math.log(2) - math.log(n - c)
        return next(j for j in count() if hypergeom.logsf(j, n - 1, special, k) <= allowed)

    enough = (
        (k, k // 2 + quantile(c, k, PRIVACY_BITS) + 1)
        for k in range(2, n, 2)
        if quantile(c, k, PRIVACY_BITS) + quantile(dropouts, k, FAILURE_BITS) < k // 2
    )
    assert ring_degree(n, c, dropouts) == next(enough)


def test_the_tail_is_exact():
    others, special, drawn = 12, 5, 6
    whole = math.comb(others, drawn)
    for bits in range(12):
        for union in (1, 3):
            tails = [
                Fraction(sum(math.comb(special, i) * math.comb(7, drawn - i) for i in range(j + 1, 6)), whole)
                for j in range(6)
            ]
            smallest = next(j for j in range(6) if union * tails[j] <= Fraction(1, 2**bits))
            assert most(others, special, drawn, union, bits) == smallest
    assert most(100, 0, 10, 1, 104) == 0
    assert most(10, 3, 10, 1, 1) == 3  # all are drawn


@pytest.mark.parametrize(
    ("n", "c", "dropouts"), [(200, 20, 20), (201, 60, 20), (1000, 333, 100), (3, 1, 0), (400, 80, 80)]
)
def test_small_and_badly_corrupt_cohorts_have_the_complete_graph(n, c, dropouts):
    parameters = Rules(c, dropouts, 2**10).parameters(n)
    assert parameters.complete
    assert parameters.neighbours == n - 1
    assert parameters.share_threshold == parameters.threshold == parameters.present + 1
    graph = Graph.of(bytes(32), range(n), parameters)
    assert graph.neighbours(n // 2) == tuple(i for i in range(n) if i != n // 2)
    assert graph.recipients(n // 2) == tuple(range(n))


def test_A7_the_graph_is_the_same_for_every_party():
    """Order of arrival does not matter; every edge is there from both ends; nobody is their own neighbour."""
    parameters = Rules(50, 50, 2**10).parameters(1000)
    indices = range(7, 7 + 3 * 1000, 3)
    graph = Graph.of(b"\x01" * 32, indices, parameters)
    assert graph == Graph.of(b"\x01" * 32, indices[::-1], parameters)
    assert graph != Graph.of(b"\x02" * 32, indices, parameters)
    around = {u: graph.neighbours(u) for u in indices}
    for u, peers in around.items():
        assert len(peers) == parameters.neighbours
        assert list(peers) == sorted(set(peers) - {u})
        assert all(u in around[v] for v in peers)
        assert graph.recipients(u) == tuple(sorted({u, *peers}))
    with pytest.raises(ProtocolError, match="unknown-member"):
        graph.neighbours(8)
    with pytest.raises(ValueError, match="1000"):
        Graph.of(bytes(32), range(999), parameters)
    with pytest.raises(ValueError, match="twice"):
        Graph.of(bytes(32), [7, *indices[:-1]], parameters)


def order_by_the_page(indices, context1):
    """The shuffle once more, from its description alone."""
    label = b"tacit/1/graph"
    key = hashlib.sha256(struct.pack(">I", len(label)) + label + struct.pack(">I", 32) + context1).digest()
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    order, i = sorted(indices), len(indices) - 1
    while i > 0:
        word = int.from_bytes(cipher.update(bytes(4)), "little")
        if word < 2**32 // (i + 1) * (i + 1):
            j = word % (i + 1)
            order[i], order[j] = order[j], order[i]
            i -= 1
    return tuple(order)


def test_A7_the_order_follows_from_the_documented_bytes():
    for n, context1 in ((201, bytes(32)), (1000, b"\x07" * 32), (5000, bytes(range(32)))):
        assert shuffled(range(n), context1) == order_by_the_page(range(n), context1)
    assert shuffled(range(10), bytes(32)) == GOLDEN
    assert shuffled((4,), bytes(32)) == (4,)


def test_a_word_that_would_favour_early_places_is_passed_over(monkeypatch):
    words = [2**32 - 1, 2**32 - 1, 1, 1, 1]  # 2^32 = 1 mod 3 and mod 5
    monkeypatch.setattr(graph_module, "_words", lambda key: iter(words))
    assert shuffled(range(3), bytes(32)) == (0, 2, 1)


# Lemma: whoever vanishes, the honest survivors that count enough neighbours are one component.


def refusing(alive, honest, k, need):
    """Honest survivors that miss too many neighbours, by place on the ring."""
    sums = np.concatenate(([0], np.cumsum(np.concatenate((alive[-k // 2 :], alive, alive[: k // 2])))))
    around = sums[k + 1 :] - sums[: len(alive)] - alive
    return alive & honest & (around < need)


def survivors(wanted, honest, k, need):
    """Drops as many of the wanted clients, in their order, as the others let pass without refusing."""

    def after(num_dropped):
        alive = np.ones(len(honest), dtype=bool)
        alive[wanted[:num_dropped]] = False
        return alive

    passed, refused = 0, len(wanted) + 1
    while refused - passed > 1:
        middle = (passed + refused) // 2
        if refusing(after(middle), honest, k, need).any():
            refused = middle
        else:
            passed = middle
    return after(passed)


def pieces(alive, honest, k):
    """Components of the honest survivors on the ring: it takes two wide gaps to cut it."""
    places = np.flatnonzero(alive & honest)
    if not len(places):
        return 0
    steps = np.diff(np.concatenate((places, [places[0] + len(alive)])))
    return max(1, int(np.count_nonzero(steps > k // 2)))


def drop_sets(rng, n, k, honest, most_dropped):
    """Sets that an adversary who sees the order would choose, without end: honest clients by place.

    A cut on both sides of an arc, a thinned one, all but a few around a victim, one side of it, and chance.
    """
    places = np.arange(n)
    for kind in count():
        at, arc = rng.integers(n), rng.integers(1, n // 2)
        away = (places - at) % n
        if kind % 5 == 0:
            chosen = (away < k // 2) | ((away >= k // 2 + arc) & (away < k + arc))
        elif kind % 5 == 1:
            near = (away < k) | ((away >= k + arc) & (away < 2 * k + arc))
            chosen = near & (rng.random(n) < rng.uniform(0.2, 0.8))
        elif kind % 5 == 2:
            chosen = (np.minimum(away, n - away) <= k // 2) & (rng.random(n) < 0.8)
        elif kind % 5 == 3:
            chosen = away <= k // 2
        else:
            chosen = rng.random(n) < rng.uniform(0, 0.4)
        found = np.flatnonzero(chosen & honest)
        yield (found if kind % 2 else rng.permutation(found))[: most_dropped or n]


def cuts(n, num_graphs, num_sets, most_dropped, need=None):
    """How many of many graphs and drop sets leave a ring in pieces, c and D being 5 %."""
    c = n // 20
    parameters = Rules(c, c, 2**8).parameters(n)
    k, need, cut = parameters.neighbours, parameters.present if need is None else need, 0
    for seed in range(num_graphs):
        graph = Graph.of(seed.to_bytes(32, "big"), range(n), parameters)
        honest = np.array(graph.order) >= c  # who is corrupt is settled before the order
        sets = drop_sets(np.random.default_rng(seed), n, k, honest, most_dropped)
        cut += sum(pieces(survivors(next(sets), honest, k, need), honest, k) != 1 for _ in range(num_sets))
    return cut


@pytest.mark.parametrize(("n", "graphs", "sets"), [(500, 20, 25), (1000, 20, 25), (10000, 2, 10)])
def test_A7_every_honest_survivor_component_is_all_survivors(n, graphs, sets):
    """Within D, and however many the server lets vanish. Where nobody counts neighbours the ring is cut."""
    assert cuts(n, graphs, sets, n // 20) == 0
    assert cuts(n, graphs, sets, None) == 0
    assert cuts(n, 1, 10, None, need=0) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("n", "graphs", "sets"), [(500, 1000, 100), (1000, 1000, 100), (10000, 20, 20)])
@pytest.mark.parametrize("within_d", [True, False])
def test_A7_every_honest_survivor_component_is_all_survivors_long(n, graphs, sets, within_d):
    assert cuts(n, graphs, sets, n // 20 if within_d else None) == 0


def test_A7_the_pieces_of_a_ring_are_those_of_its_edges():
    """`pieces` against a walk along `Graph.neighbours`, on rings that are cut on purpose."""
    n, k = 300, 10
    graph = Graph(shuffled(range(n), bytes(32)), k)
    honest, seen = np.ones(n, dtype=bool), set()
    sets = drop_sets(np.random.default_rng(0), n, k, honest, None)
    for _ in range(40):
        alive = np.ones(n, dtype=bool)
        alive[next(sets)] = False
        left = {graph.order[place] for place in np.flatnonzero(alive)}
        components = 0
        while left:
            components, reached = components + 1, [left.pop()]
            while reached:
                near = left.intersection(graph.neighbours(reached.pop()))
                left -= near
                reached += near
        assert pieces(alive, honest, k) == components
        seen.add(components)
    assert {1, 2} <= seen


def test_A7_one_neighbour_fewer_and_an_arc_could_be_cut_out():
    """Two gaps of k/2, each with c_max corrupt clients in it: t neighbours find them out, t - 1 do not."""
    n, c = 10000, 500
    parameters = Rules(c, c, 2**8).parameters(n)
    k, half = parameters.neighbours, parameters.neighbours // 2
    c_max = parameters.share_threshold - half - 1
    honest, alive = np.ones(n, dtype=bool), np.ones(n, dtype=bool)
    for gap in (1000, 4000):
        honest[gap : gap + c_max] = False
        alive[gap + c_max : gap + half] = False
    assert n - alive.sum() <= parameters.max_dropouts
    assert np.count_nonzero(~honest) <= c
    assert pieces(alive, honest, k) == 2
    assert not refusing(alive, honest, k, parameters.present - 1).any()
    assert refusing(alive, honest, k, parameters.present).any()
