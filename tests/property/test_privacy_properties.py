"""Properties of the accountant, the chain of records and the site policy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit import config
from tacit.errors import Refused, StorageError
from tacit.privacy import chain
from tacit.privacy.accountant import Event, compose, epsilon_pld, epsilon_rdp, fits, grid
from tacit.privacy.policy import SitePolicy

events = st.builds(
    Event,
    st.just("poisson_gaussian"),
    st.floats(0.8, 20),
    st.floats(0.01, 1),
    st.integers(1, 300),
)

# So few kinds of release that some are made twice.
repeated = st.builds(
    Event,
    st.just("poisson_gaussian"),
    st.sampled_from([0.8, 3.0]),
    st.sampled_from([0.02, 1.0]),
    st.integers(1, 300),
)


# I12 in three tables, 500 cases together.


@settings(max_examples=100, deadline=None)
@given(event=events)
def test_I12_rdp_is_never_below_pld(event: Event) -> None:
    rdp = epsilon_rdp(event, 1e-5)
    assert rdp >= epsilon_pld(event, 1e-5, 5 * grid(rdp))


@settings(max_examples=200, deadline=None)
@given(event=events, more=st.integers(1, 50))
def test_I12_more_steps_cost_more(event: Event, more: int) -> None:
    longer = Event(event.kind, event.noise_multiplier, event.sampling_rate, event.steps + more)
    assert epsilon_pld(longer, 1e-5, 5e-3) >= epsilon_pld(event, 1e-5, 5e-3)
    assert fits(event, 2.0, 1e-5) or not fits(longer, 2.0, 1e-5)


@settings(max_examples=200, deadline=None)
@given(event=events, factor=st.floats(1.01, 3))
def test_I12_more_noise_costs_less(event: Event, factor: float) -> None:
    noisier = Event(event.kind, event.noise_multiplier * factor, event.sampling_rate, event.steps)
    assert epsilon_pld(noisier, 1e-5, 5e-3) <= epsilon_pld(event, 1e-5, 5e-3)
    assert fits(noisier, 2.0, 1e-5) or not fits(event, 2.0, 1e-5)


@settings(max_examples=25, deadline=None)
@given(history=st.lists(repeated, max_size=6), data=st.data())
def test_I11_a_history_costs_the_same_in_any_order_and_grouping(
    history: list[Event], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(history))
    cut = data.draw(st.integers(0, len(history)))
    regrouped = compose(*compose(*shuffled[:cut]), *compose(*shuffled[cut:]))
    assert epsilon_rdp(regrouped, 1e-5) == pytest.approx(epsilon_rdp(history, 1e-5), abs=1e-9)


# The chain of records.

SOURCE = Path("ledger")
payloads = st.lists(st.dictionaries(st.sampled_from("abc"), st.text() | st.integers()), max_size=6)


def written(fields: list[dict[str, str | int]], torn: dict[int, list[bytes]]) -> tuple[bytes, int]:
    """A file after these records, with writes cut short before some; and how many were cut short."""
    data, previous, num_torn = b"", chain.GENESIS, 0
    for i in range(len(fields) + 1):
        left = b""
        for cut in torn.get(i, []):
            left += (b"\x1e" if left else b"") + cut
            num_torn += 1
        data += left
        if i < len(fields):
            line, record = chain.encode(fields[i], i + 1, previous, left)
            data, previous = data + line, record["hash"]
    return data, num_torn


cuts = st.binary(min_size=1, max_size=40).filter(lambda cut: not set(cut) & set(b"\n\x1e"))


@settings(max_examples=300, deadline=None)
@given(fields=payloads, torn=st.dictionaries(st.integers(0, 6), st.lists(cuts, max_size=3), max_size=3))
def test_records_and_cut_writes_read_back(
    fields: list[dict[str, str | int]], torn: dict[int, list[bytes]]
) -> None:
    torn = {i: writes for i, writes in torn.items() if i <= len(fields)}
    data, num_torn = written(fields, torn)
    found = chain.decode(data, SOURCE)
    assert [{key: r[key] for key in f} for r, f in zip(found.records, fields, strict=True)] == fields
    assert found.num_torn == num_torn
    assert found.torn == b"\x1e".join(torn.get(len(fields), []))


@settings(max_examples=300, deadline=None)
@given(
    fields=payloads.filter(lambda fields: len(fields) > 1),
    torn=st.dictionaries(st.integers(0, 6), st.lists(cuts, max_size=2), max_size=2),
    data=st.data(),
)
def test_F3_a_changed_byte_never_reads_as_the_same_number_of_records(
    fields: list[dict[str, str | int]], torn: dict[int, list[bytes]], data: st.DataObject
) -> None:
    torn = {i: writes for i, writes in torn.items() if i < len(fields)}
    good, _ = written(fields, torn)
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    try:
        found = chain.decode(bad, SOURCE)
    except StorageError:
        return
    assert len(found.records) < len(fields)  # the head says how many there were


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300) | st.text('{}[]",:\x1e\n0ah').map(str.encode))
def test_H6_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        found = chain.decode(data, SOURCE)
    except StorageError:
        return
    assert found.records == () and found.torn == data


# The policy.

STRICTER = {
    "epsilon_ceiling": [None, 8.0, 1.0, 0.5],
    "delta": [1e-2, 1e-4, 1e-5],
    "min_honest": [2, 4, 9, 10],
    "require_secure_aggregation": [False, True],
    "allow_single_updates": [True, False],
    "allowed_tasks": [("tabular", "a:b"), ("tabular",), ()],
    "max_model_parameters": [1_000_000, 50, 1],
    "max_update_norm": [1e6, 10.0, 1.0],
}
steps = {name: st.integers(0, len(values) - 1) for name, values in STRICTER.items()}

EXPERIMENTS = [
    'name = "a"\n[privacy.record]\nepsilon = 1.0\ndelta = 1e-4\n',
    'name = "a"\n',
    'name = "a"\nsecure_aggregation.enabled = false\n[privacy.record]\nepsilon = 1.0\ndelta = 1e-5\n',
    'name = "a"\nsecure_aggregation.engine = "ideal"\n',
    'name = "a"\n[privacy.client]\nepsilon = 0.45\ndelta = 1e-5\n',
    'name = "a"\ntask.kind = "a:b"\n[training]\nclients_per_round = 5\n',
]
SITES = "".join(f'[[federation.sites]]\nlabel = "s{i}"\nrows = 50\n' for i in range(10))


def refuses(policy: SitePolicy, experiment: config.Experiment) -> bool:
    try:
        policy.check(experiment)
    except Refused:
        return True
    return False


@settings(max_examples=300, deadline=None)
@given(
    text=st.sampled_from(EXPERIMENTS), first=st.fixed_dictionaries(steps), second=st.fixed_dictionaries(steps)
)
def test_a_stricter_policy_refuses_what_a_looser_one_refuses(
    text: str, first: dict[str, int], second: dict[str, int]
) -> None:
    experiment = config.loads(text + SITES)
    before = experiment.to_toml()
    strict = {name: max(first[name], second[name]) for name in first}
    loose, strict_policy = (
        SitePolicy.model_validate({name: STRICTER[name][i] for name, i in levels.items()})
        for levels in (first, strict)
    )
    assert refuses(strict_policy, experiment) or not refuses(loose, experiment)
    assert experiment.to_toml() == before
