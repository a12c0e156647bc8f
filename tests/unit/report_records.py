"""Records of runs as the harness would write them, for the tests of the report."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np

from tacit.config import parse
from tacit.report.record import (
    Baseline,
    Baselines,
    Final,
    PrivacyEntry,
    Round,
    RunRecord,
    SecureSum,
    SiteResult,
    SiteSlice,
)
from tacit.report.wording import not_covered, trusted

SITES = ("cleveland", "hungarian", "switzerland", "va long beach")
ROWS = (303, 261, 46, 130)


def entry(**changes: Any) -> PrivacyEntry:
    fields: dict[str, Any] = {
        "unit": "record",
        "relation": "add or remove one record",
        "epsilon": 0.99951,
        "delta": 1e-4,
        "target_epsilon": 1.0,
        "accountant": "PLD (dp-accounting 0.6)",
        "noise_multiplier": 1.2345,
        "debits": 22,
        "trusted": trusted("record"),
        "not_covered": not_covered("record", simulation=True),
        "epsilon_spent": 0.94,
    }
    return PrivacyEntry(**{**fields, **changes})


def run_record(
    *, labels: tuple[str, ...] = SITES, rows: tuple[int, ...] = ROWS, private: bool = True, **changes: Any
) -> RunRecord:
    """A run as `tacit simulate` would record it, from a fixed generator.

    Longer than 60 lines because a record has that many fields.
    """
    rng = np.random.default_rng(5)
    rounds = 20
    privacy = {"record": {"epsilon": 1.0, "delta": 1e-4, "metrics_share": 0.1}} if private else {}
    experiment = parse(
        {
            "name": "heart disease",
            "privacy": privacy,
            "partition": {"num_clients": len(labels)},
            "federation": {},
        },
        source="",
    )
    curve = [0.84 - 0.30 * math.exp(-r / 4) + 0.01 * float(rng.normal()) for r in range(1, rounds + 1)]

    def metrics(accuracy: float) -> dict[str, float]:
        return {
            "accuracy": accuracy,
            "auroc": min(0.99, accuracy + 0.07),
            "loss": 1.25 * (1 - accuracy) + 0.2,
        }

    def site(i: int, shift: float) -> SiteResult:
        accuracy = 0.80 + 0.08 * float(rng.normal()) / math.sqrt(rows[i] / 50) + shift
        return SiteResult(label=labels[i], rows=rows[i], test_rows=rows[i] // 3, metrics=metrics(accuracy))

    federated = tuple(site(i, 0.02) for i in range(len(labels)))
    alone = tuple(site(i, -0.01) for i in range(len(labels)))
    positives = [int(n * p) for n, p in zip(rows, rng.dirichlet([2] * len(rows)) * 2 % 1, strict=True)]
    fields: dict[str, Any] = {
        "run_id": "7c1e5a90d2f44b3c",
        "started": datetime(2026, 11, 20, 19, 2, tzinfo=UTC),
        "outcome": "finished",
        "engine": "local",
        "seed": 7,
        "experiment": experiment.model_dump(mode="json", by_alias=True, exclude_none=True),
        "rounds": tuple(
            Round(
                round=r,
                seconds=0.21 + 0.05 * float(rng.random()),
                cohort=labels,
                survivors=labels[: len(labels) - (r % 7 == 0)],
                metrics=metrics(curve[r - 1]),
                epsilon=0.94 * math.sqrt(r / rounds) if private else math.inf,
                private_metrics={"accuracy": curve[r - 1] + 0.02 * float(rng.normal())},
            )
            for r in range(1, rounds + 1)
        ),
        "final": Final(metrics=metrics(curve[-1]), sites=federated),
        "baselines": Baselines(
            pooled=Baseline(metrics=metrics(0.852)),
            local=Baseline(metrics=metrics(0.781), sites=alone),
            majority=Baseline(metrics={"accuracy": 0.721}),
        ),
        "privacy": (entry() if private else PrivacyEntry.nothing(),),
        "secure_aggregation": SecureSum(
            enabled=True, engine="protocol", protocol="tacit-1", bits=21, threshold=3,
            bytes_up_per_client=1387, clipped_fraction=0.0125,
        ),
        "partition": tuple(
            SiteSlice(
                label=labels[i], rows=n, train=n - n // 3, test=n // 3,
                labels={"healthy": n - positives[i], "disease": positives[i]},
            )
            for i, n in enumerate(rows)
        ),
        "timings": {"setup": 1.21, "training": 4.6, "baselines": 3.05, "total": 71.4},
        "versions": {"tacit": "0.1.0", "torch": "2.13.0", "opacus": "1.6.0", "dp-accounting": "0.6.0"},
        "ledger": tuple(
            {"sequence": r, "run": "7c1e5a90d2f44b3c", "event": "record", "debit": r, "hash": "ab12" * 16}
            for r in (18, 19, 20)
        ),
    }  # fmt: skip
    return RunRecord(**{**fields, **changes})


def many_sites(private: bool = True, **changes: Any) -> RunRecord:
    labels = tuple(f"bank {i:02d}" for i in range(20))
    return run_record(
        labels=labels, rows=tuple(120 + 137 * i % 1900 for i in range(20)), private=private, **changes
    )


def seeded(**changes: Any) -> RunRecord:
    """A run whose noise can be drawn again."""
    experiment = {**run_record().experiment, "insecure_seeded_noise": True}
    promise = entry(epsilon=math.inf, epsilon_if_os_noise=0.99951, epsilon_spent=None)
    rounds = run_record(private=False).rounds
    return run_record(experiment=experiment, privacy=(promise,), rounds=rounds, **changes)


def deployed(private: bool = True) -> RunRecord:
    """What a real server can record."""
    base = run_record(private=private)
    return run_record(
        private=private,
        engine="superlink",
        privacy=(
            entry(not_covered=not_covered("record", simulation=False)) if private else PrivacyEntry.nothing(),
        ),
        rounds=tuple(item.model_copy(update={"metrics": {}}) for item in base.rounds),
        final=Final(metrics={"accuracy": 0.8125}),
        baselines=Baselines(),
        partition=(),
        secure_aggregation=base.secure_aggregation.model_copy(update={"clipped_fraction": None}),
    )


def sentinel_record() -> RunRecord:
    """A run in which each exact figure has a spelling of its own."""

    def site(label: str, rows: int, accuracy: float) -> SiteResult:
        return SiteResult(label=label, rows=rows, test_rows=rows + 1, metrics={"accuracy": accuracy})

    return run_record(
        labels=("x", "y", "z"), rows=(40, 50, 60),
        rounds=(Round(
            round=1, seconds=0.25, cohort=("x", "y"), survivors=("x", "y"), metrics={"accuracy": 0.61101},
            private_metrics={"accuracy": 0.62201}, epsilon=0.63301,
        ),),
        final=Final(
            metrics={"accuracy": 0.64401}, sites=(site("x", 7101, 0.65501), site("y", 7201, 0.66601))),
        baselines=Baselines(
            pooled=Baseline(metrics={"accuracy": 0.67701}),
            local=Baseline(metrics={"accuracy": 0.68801}, sites=(site("x", 7101, 0.69901),)),
            majority=Baseline(metrics={"accuracy": 0.70001}),
        ),
        partition=(SiteSlice(label="x", rows=7301, train=7401, test=7501, labels={"0": 7601, "1": 7701}),),
        secure_aggregation=SecureSum(
            enabled=True, engine="protocol", protocol="tacit-1", clipped_fraction=0.719),
    )  # fmt: skip


def client_record(noise: str, protocol: str = "tacit-1", engine: str = "protocol") -> RunRecord:
    base = run_record()
    secure = SecureSum(enabled=noise == "distributed", engine=engine, protocol=protocol, bits=24, threshold=3)
    client = {"epsilon": 4.0, "delta": 1e-5, "noise": noise}
    both = {**base.experiment["privacy"], "client": client}
    promise = entry(
        unit="client",
        epsilon=3.9,
        target_epsilon=4.0,
        delta=1e-5,
        trusted=trusted("client", noise=noise, secure=secure),
    )
    return run_record(
        experiment={**base.experiment, "privacy": both}, privacy=(entry(), promise), secure_aggregation=secure
    )
