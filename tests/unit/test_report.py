"""The run record, its JSON, the privacy statement and the terminal summary."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from tacit.errors import StorageError
from tacit.report.compare import comparison, per_site
from tacit.report.record import Baseline, Baselines, Final, PrivacyEntry, RunRecord, SecureSum, SiteResult
from tacit.report.statement import privacy_statement, write_statement
from tacit.report.storage import read_json, write_json, write_text
from tacit.report.summary import summary_table
from tacit.report.wording import upper
from tests.unit.report_records import client_record, deployed, entry, run_record, seeded

# ---- the record


def test_record_reads_back_equal_and_holds_no_nan_or_infinity(tmp_path: Path) -> None:
    awkward = Final(
        metrics={"auroc": float("nan"), "loss": math.inf, "accuracy": np.float32(0.5)},
        sites=(SiteResult(label="a", rows=np.int64(3), test_rows=1, metrics={"auroc": math.nan}),),
    )
    record = run_record(private=False, final=awkward, timings={"total": np.float64(1.5)})
    write_json(record, tmp_path / "deep" / "report.json")
    assert read_json(tmp_path / "deep" / "report.json") == record

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in report.json")

    text = (tmp_path / "deep" / "report.json").read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=refuse)
    assert content["final"]["metrics"] == {"auroc": None, "loss": "inf", "accuracy": 0.5}
    assert content["privacy"][0]["unit"] == "none" and content["privacy"][0]["epsilon"] == "inf"
    assert content["rounds"][0]["epsilon"] == "inf"


CONTRACT = (
    *(
        "run_id",
        "started",
        "seed",
        "outcome",
        "engine",
        "experiment",
        "rounds",
        "final.metrics",
        "final.sites",
    ),
    *("baselines.pooled.metrics", "baselines.local.metrics", "baselines.local.sites", "privacy", "partition"),
    *("secure_aggregation.enabled", "secure_aggregation.engine", "secure_aggregation.protocol"),
    *("secure_aggregation.bits", "secure_aggregation.threshold", "secure_aggregation.bytes_up_per_client"),
    *("secure_aggregation.clipped_fraction", "timings", "versions", "warnings", "ledger"),
)


def test_report_json_has_every_key_of_the_contract_and_the_docs_explain_each(tmp_path: Path) -> None:
    write_json(run_record(), tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    for path in CONTRACT:
        value = content
        for key in path.split("."):
            assert key in value, path
            value = value[key]
    assert {"round", "seconds", "cohort", "survivors", "metrics", "epsilon"} <= set(content["rounds"][0])
    promised = {"unit", "relation", "epsilon", "delta", "target_epsilon", "accountant", "noise_multiplier"}
    assert promised | {"debits", "trusted", "not_covered"} <= set(content["privacy"][0])
    docs = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    free = {"experiment", "metrics", "private_metrics", "labels", "shares", "timings", "versions", "ledger"}

    def keys(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(keys, value))
        if not isinstance(value, dict):
            return set()
        return set(value).union(*(keys(item) for key, item in value.items() if key not in free))

    assert sorted(key for key in keys(content) if f"`{key}`" not in docs) == []


UNBACKED = {
    "unit none": (lambda: entry(unit="none"), "no finite epsilon"),
    "no noise": (lambda: entry(noise_multiplier=0.0), "needs noise"),
    "no delta": (lambda: entry(delta=0.0), "needs noise and a delta"),
    "nan": (lambda: entry(epsilon=math.nan), "epsilon"),
    "not configured": (lambda: run_record(private=False, privacy=(entry(),)), "does not configure"),
    "other unit": (lambda: run_record(privacy=(entry(unit="client"),)), "does not configure"),
    "seeded noise": (lambda: run_record(experiment=seeded().experiment, privacy=(entry(),)), "seeded noise"),
    "spent": (lambda: entry(epsilon=math.inf), "finite epsilon_spent under an infinite"),
    "rounds": (lambda: run_record(privacy=(PrivacyEntry.nothing(),)), "after a round of a run that is not"),
    "two for one unit": (lambda: run_record(privacy=(entry(), entry())), "two entries"),
    "left blank": (lambda: run_record(privacy=()), "privacy"),
    "unknown outcome": (lambda: run_record(outcome="fine"), "outcome"),
    "unknown key": (lambda: run_record(epsilon=1.0), "epsilon"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNBACKED)
def test_finite_epsilon_that_the_configuration_does_not_back_cannot_be_made(case: str) -> None:
    make, reason = UNBACKED[case]
    with pytest.raises(ValidationError, match=reason):
        make()


@pytest.mark.parametrize("key", ["final", "partition", "baselines", "rounds", "secure_aggregation"])
def test_record_of_a_deployment_holds_no_figure_of_a_single_site(key: str) -> None:
    known = {name: getattr(deployed(), name) for name in RunRecord.model_fields}
    with pytest.raises(ValidationError, match=f"only a simulation can know {key}"):
        RunRecord(**{**known, key: getattr(run_record(), key)})


def test_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_text("old", path)
    with path.open(encoding="utf-8") as reader:
        write_text("new", path)
        assert reader.read() == "old", "the old file was overwritten in place"
    assert path.read_text(encoding="utf-8") == "new"
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match="taken"):
        write_text("x", tmp_path / "taken")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["report.json", "taken"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"run_id": "x"}', "\udcff"])
def test_file_that_is_no_record_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(StorageError, match=r"report\.json"):
        read_json(path)
    with pytest.raises(StorageError, match=r"absent\.json"):
        read_json(tmp_path / "absent.json")


# ---- the statement


STATEMENTS: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]] = {
    "record": (
        run_record,
        (
            "epsilon at most 0.9996 and delta 0.0001",
            "adding or removing one record of one site",
            "each single record: one row of one site's table",
            "with r records the exposure is r times epsilon",
            "22 releases",
            "PLD (dp-accounting 0.6)",
            "nobody outside the site",
            "factor of at most e^epsilon = 2.72",
            "at most 2.8 % of cases",
            "designed to hold when the server lies",
            "The pooled and local-only baselines",
            "final.sites",
            "Tuning",
            "Participation",
            "Poisoning",
            "Traffic analysis",
            "Floating-point attacks",
            "held-out test rows",
            "never from the run's seed",
            "7c1e5a90d2f44b3c",
            "2026-11-20 19:02 UTC",
            "Signature: ____",
            "- **torch**: 2.13.0",
            "all sites were on one machine",
        ),
        ("NOT PRIVATE", "infinite"),
    ),
    "none": (
        lambda: run_record(private=False),
        (
            "NOT PRIVATE: epsilon is infinite",
            "No noise was added.",
            "no noise protects",
            "Nothing is covered.",
        ),
        ("e^epsilon", "differentially private with", "What is promised", "must be trusted:"),
    ),
    "seeded": (
        seeded,
        (
            "NOT PRIVATE",
            "whoever knows the seed can subtract it",
            "would give epsilon 0.9996",
            "may not claim it",
        ),
        ("e^epsilon", "differentially private with", "What is promised", "operating system's generator"),
    ),
    "deployment": (
        deployed,
        ("In this run:", "with noise that the budget pays for"),
        ("one machine", "baselines", "Tuning", "whoever runs the machine"),
    ),
    "distributed": (
        lambda: client_record("distributed"),
        (
            "epsilon at most 3.9",
            "they are not one promise",
            "replacing everything one client contributes by nothing",
            "its share of the noise",
            "no single party; at most the stated number of clients may collude",
        ),
        (),
    ),
    "central": (
        lambda: client_record("central"),
        (
            "the coordinating server: it sees each client's clipped update",
            "The coordinating server adds the noise",
        ),
        ("its share of the noise", "designed to let it learn only"),
    ),
    "ideal": (
        lambda: run_record(secure_aggregation=SecureSum(enabled=True, engine="ideal", protocol="tacit-1")),
        ("without cryptography. Nothing was masked in this run.",),
        ("On: the coordinating server receives masked",),
    ),
    "no secure sum": (
        lambda: run_record(secure_aggregation=SecureSum(enabled=False)),
        ("Off: the coordinating server receives each client's update by itself", "already private"),
        ("masked update", "tacit-1"),
    ),
    "weak": (
        lambda: run_record(privacy=(entry(epsilon=8.0, target_epsilon=7.0, epsilon_spent=9.0),)),
        (
            "A factor of more than 1000 says little",
            "Warning: Epsilon per record (8) EXCEEDS what the experiment asked for (7).",
            "Warning: The releases made spent epsilon 9 per record, which EXCEEDS the promise (8).",
        ),
        (),
    ),
    "warned": (lambda: run_record(warnings=("one site left",)), ("Warning: one site left",), ()),
    "own exclusions": (
        lambda: run_record(privacy=(entry(not_covered=("the moon",)),)),
        ("- the moon", "Poisoning"),
        (),
    ),
}


@pytest.mark.parametrize("case", STATEMENTS)
def test_statement_says_what_the_record_holds_and_no_more(case: str) -> None:
    make, said, not_said = STATEMENTS[case]
    record = make()
    text = privacy_statement(record)
    assert [words for words in said if words not in text] == []
    assert [words for words in not_said if words in text] == []


def test_run_that_is_not_private_says_so_first(tmp_path: Path) -> None:
    for record in (run_record(private=False), seeded()):
        write_statement(record, tmp_path / "privacy-statement.md")
        assert (tmp_path / "privacy-statement.md").read_text(encoding="utf-8").startswith("# NOT PRIVATE")
        output = io.StringIO()
        Console(file=output, width=200).print(summary_table(record))
        assert "NOT PRIVATE" in output.getvalue().splitlines()[0]


@pytest.mark.parametrize(
    ("bound", "text"),
    [
        *((0.99951, "0.9996"), (3.0, "3"), (2.99996, "3"), (1.00001, "1.001"), (12345.6, "1.235e+04")),
        *((1e-5, "1e-05"), (0.0, "0"), (math.inf, "infinite")),
    ],
)
def test_bound_is_rounded_up_so_that_the_page_never_claims_more(bound: float, text: str) -> None:
    assert upper(bound) == text
    assert bound == math.inf or float(upper(bound)) >= bound


# ---- comparison and summary


def test_gain_is_positive_where_the_federated_model_is_better() -> None:
    def site(label: str, accuracy: float | None, loss: float) -> SiteResult:
        return SiteResult(label=label, rows=9, test_rows=3, metrics={"accuracy": accuracy, "loss": loss})

    record = run_record(
        final=Final(metrics={}, sites=(site("a", 0.9, 0.2), site("b", 0.5, 0.9), site("c", None, 0.1))),
        baselines=Baselines(local=Baseline(metrics={}, sites=(site("b", 0.6, 0.7), site("a", 0.8, 0.5)))),
    )
    gains = {metric: [row.gain for row in per_site(record, metric)] for metric in ("accuracy", "loss")}
    assert gains["accuracy"] == [pytest.approx(0.1), pytest.approx(-0.1), None]
    assert gains["loss"] == [pytest.approx(0.3), pytest.approx(-0.2), None]
    means = next(row for row in comparison(record) if row.title.startswith("Federated, mean"))
    assert means.metrics == {"accuracy": pytest.approx(0.7), "loss": pytest.approx(0.4)}


def test_summary_shows_federated_beside_baselines_with_epsilon_bytes_and_time() -> None:
    record = run_record(outcome="failed: [bold]x[/bold]")
    output = io.StringIO()
    Console(file=output, width=200).print(summary_table(record))
    text = output.getvalue()
    cost = ("4 sites, 20 rounds in", "1.4 kB up per client", "tacit-1", "0.9996 (delta 0.0001, record)")
    for words in (
        "failed: [bold]x[/bold]",
        "Federated",
        "Pooled",
        "Each site alone",
        "not private",
        "0.721",
        *cost,
    ):
        assert words in text
