"""Metrics of a coordinator: what happened, and to no site in particular."""

from __future__ import annotations

import os
import re
import urllib.request
from pathlib import Path

import pytest

from server.metrics import REASONS, Metrics, serve_metrics
from server.state import read_rounds
from tacit.errors import StorageError
from tests.architecture.sources import text
from tests.unit.small_federation import Federation, Misbehaving, refusal

ROW = {
    "round": 1,
    "seconds": 0.75,
    "cohort": ["hospital-a", "hospital-b", "hospital-c"],
    "survivors": ["hospital-a", "hospital-c"],
    "refusals": {"budget-spent": 1, "hospital-b has 83 patients": 2},
    "metrics": {"accuracy": 0.8125},
    "epsilon": 1.5,
    "bytes_up": 1000,
    "attempts": 2,
    "blamed": ["hospital-b"],
    "phases": {"keys": 0.5, "vectors": 0.125},
}


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """name and label -> value."""
    found = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            found[sample.name, ",".join(sample.labels.values())] = sample.value
    return found


def test_a_round_is_counted() -> None:
    metrics = Metrics()
    metrics.round("run-1", ROW)
    metrics.round("run-1", {**ROW, "epsilon": 2.5, "refusals": {}, "attempts": None})
    metrics.online(3)
    metrics.ended("finished")
    found = samples(metrics)
    for name, value in {
        ("tacit_rounds_total", ""): 2,
        ("tacit_attempts_total", ""): 3,
        ("tacit_refusals_total", "budget-spent"): 1,
        ("tacit_bytes_up_total", ""): 4000,
        ("tacit_epsilon_spent", "run-1"): 2.5,
        ("tacit_round_seconds_count", ""): 2,
        ("tacit_phase_seconds", "keys"): 0.5,
        ("tacit_sites_online", ""): 3,
        ("tacit_runs_total", "finished"): 1,
    }.items():
        assert found[name] == value, name


def test_no_sample_has_a_label_that_names_a_site_and_none_is_about_one() -> None:
    """Whatever a site writes as its reason, and whatever else is in the row."""
    metrics = Metrics()
    metrics.round("run-1", ROW)
    for i in range(1000):
        metrics.round("run-1", {**ROW, "refusals": {f"hospital-{i}": 1}})
    found = samples(metrics)
    assert found["tacit_refusals_total", "other"] == 1002
    assert len(found) < 60
    assert not any("hospital" in part or part == "accuracy" for key in found for part in key)
    assert 0.8125 not in found.values()
    labels = {label for family in metrics.registry.collect() for s in family.samples for label in s.labels}
    assert labels <= {"reason", "run", "phase", "outcome", "le"}


def test_every_code_of_the_protocol_page_has_a_counter_of_its_own() -> None:
    section = text("docs/protocol.md").split("\n## 13.")[1].split("\n## 14.")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    codes = {code for row in rows for code in re.findall("`([a-z-]+)`", row)}
    assert len(codes) > 60 and codes - REASONS == set()


def test_two_coordinators_in_one_process_count_for_themselves() -> None:
    one, two = Metrics(), Metrics()
    one.online(5)
    assert (samples(one)["tacit_sites_online", ""], samples(two)["tacit_sites_online", ""]) == (5, 0)


def test_a_run_without_a_promise_has_spent_infinity() -> None:
    metrics = Metrics()
    metrics.round("run-1", {**ROW, "epsilon": None})
    assert samples(metrics)["tacit_epsilon_spent", "run-1"] == float("inf")


def test_they_are_served_on_loopback_and_the_port_is_given_back() -> None:
    metrics = Metrics()
    metrics.round("run-1", ROW)
    server = serve_metrics(metrics, 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as page:
            assert b"tacit_rounds_total 1.0" in page.read()
        with open("/proc/net/tcp") as file:
            lines = [line.split() for line in file]
        bound = {line[1] for line in lines if line[1].endswith(f":{server.port:04X}") and line[3] == "0A"}
        assert bound == {f"0100007F:{server.port:04X}"}
        with pytest.raises(StorageError, match=str(server.port)):
            serve_metrics(metrics, server.port)
    finally:
        server.close()
    server.close()
    with open("/proc/net/tcp") as file:
        still = {line.split()[9] for line in file if line.split()[1] == f"0100007F:{server.port:04X}"}
    mine = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if is_open(fd)}
    assert not {f"socket:[{inode}]" for inode in still} & mine  # somebody else may have the port by now


def is_open(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


def test_a_real_round_fills_them(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "training.rounds=1")

    def what(message, real, site):  # type: ignore[no-untyped-def]
        is_first = message.metadata.message_type == "train.tacit0"
        return refusal(message, "rate") if is_first and site == 2 else None

    federation.run(tmp_path / "run", app=Misbehaving(what))
    metrics = Metrics()
    (row,) = read_rounds(tmp_path / "run" / "rounds.jsonl")
    metrics.round("run-1", row)
    found = samples(metrics)
    assert found["tacit_refusals_total", "rate"] == 1
    assert found["tacit_bytes_up_total", ""] == 5 * row["bytes_up"] > 0
    phases = [
        found["tacit_phase_seconds", name]
        for name in ("keys", "shares", "vectors", "confirmations", "openings")
    ]
    assert 0 < sum(phases) < row["seconds"]
