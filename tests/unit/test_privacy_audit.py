"""The parts of a privacy audit, each against what it should find in something made up."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from client.bookkeeping import BookKeeping
from simulations.auditing.audit import METHODS, audit, trainings
from simulations.auditing.canaries import Canaries, canaries_like
from simulations.auditing.cli import ahead, progress
from simulations.auditing.decoding import MOST_COORDINATES, Decoder, coordinates, gradients
from simulations.auditing.inversion import by_ratio, shape_of, similarity
from simulations.auditing.membership import likelihood_ratio
from simulations.auditing.one_run import shares
from tacit import config
from tacit.cli import main
from tacit.privacy.noise import Stream
from tacit.report.audit_page import HONESTY, MARK, lower, render_audit_page
from tacit.report.audit_record import Attack, AuditRecord, Image, Inversion
from tacit.tasks import Records
from tests.unit.test_report_page import Page, nearest_mark


class Halves:
    """A small classification task."""

    metric_names = ("nothing",)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")


MODEL = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
RECORDS = Records(torch.randn(9, 6, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 3)


@pytest.mark.parametrize("clip", [0.3, 100.0])
def test_the_auditors_gradients_are_those_that_the_client_sums(clip: float) -> None:
    found = gradients(MODEL, Halves(), RECORDS, clip)
    step = BookKeeping(MODEL, Halves(), clip, 0.0)
    step.fill(RECORDS, 1.0, Stream(bytes(32)))
    summed = torch.cat([p.grad.flatten() for p in MODEL.parameters()]).numpy()  # type: ignore[union-attr]
    assert np.allclose(found.sum(axis=0), summed, atol=1e-5)
    assert (np.linalg.norm(found, axis=1) <= clip * (1 + 1e-6)).all()


def test_a_large_gradient_is_looked_at_in_places_that_stay_the_same() -> None:
    chosen = coordinates(3 * MOST_COORDINATES)
    assert isinstance(chosen, np.ndarray) and len(set(chosen.tolist())) == MOST_COORDINATES
    assert (chosen == coordinates(3 * MOST_COORDINATES)).all() and coordinates(7) == slice(None)


@pytest.mark.parametrize(("std", "right"), [(0.0, 1.0), (0.5, 0.9)])
def test_the_decoder_tells_canaries_apart_that_drown_one_another_in_an_inner_product(
    std: float, right: float
) -> None:
    rng, count = np.random.default_rng(2), 80
    coins, decoder, products = rng.random(count) < 0.5, Decoder(count), np.zeros(count)
    for _ in range(4):
        directions = rng.standard_normal((count, 100)) / 10 + 0.1  # all of them point the same way a little
        observed = coins @ directions + std * rng.standard_normal(100)
        decoder.add(directions / 2, observed - directions.sum(axis=0) / 2)
        products += directions @ observed
    scores = decoder.estimates()
    assert ((scores > 0) == coins).mean() >= right
    assert ((products > np.median(products)) == coins).mean() < 0.9


def test_the_decoder_finds_nothing_in_noise() -> None:
    rng, count = np.random.default_rng(3), 400
    coins, decoder = rng.random(count) < 0.5, Decoder(count)
    decoder.add(rng.standard_normal((count, 50)), 20 * rng.standard_normal(50))
    assert abs(((decoder.estimates() > 0) == coins).mean() - 0.5) < 0.1


def norms(records: Records) -> np.ndarray:
    return np.asarray(torch.linalg.vector_norm(records.features.double(), dim=1))


def test_canaries_are_records_like_others_and_in_by_a_fair_coin() -> None:
    canaries = Canaries([1000, 0, 500], 4, norms)
    coins = canaries.coins(0)
    again = Canaries([1000, 0, 500], 4, norms).coins(0)
    assert abs(coins.mean() - 0.5) < 0.08 and (coins == again).all()
    assert (coins[:500] != canaries.coins(2)).any() and canaries.coins(1).size == 0
    made, own = canaries.of(0, RECORDS)
    assert own is RECORDS and canaries.known(0)[0] is made
    assert made.features.shape == (1000, 6) and made.features.dtype == RECORDS.features.dtype
    assert set(made.targets.tolist()) == {0, 1, 2}
    assert canaries.of(1, RECORDS)[0].num_rows == 0


@pytest.mark.parametrize(("wanted", "spread"), [(0.0, 3.0), (20.0, 10.0), (1e9, 100.0)])
def test_of_all_canaries_those_with_the_longest_gradients_are_taken(wanted: float, spread: float) -> None:
    """And their spread grows until all are as long as is wanted, where that can be reached."""
    made, _ = Canaries([100], 4, norms, wanted).of(0, RECORDS)
    lengths = norms(made) / float(RECORDS.features.std())
    assert (lengths > 2.4 * spread).all() and (lengths < 6 * spread).all()  # of six numbers: 2.45 in the mean
    assert wanted > 1e6 or norms(made).min() >= wanted


def test_canaries_of_whole_numbers_have_values_that_occur() -> None:
    tokens = Records(torch.tensor([[1, 10], [2, 20], [3, 30]]), torch.tensor([0.5, 1.5, 2.5]))
    made = canaries_like(tokens, 50, 3.0, np.random.default_rng(5))
    assert set(made.features[:, 0].tolist()) == {1, 2, 3} and set(made.features[:, 1].tolist()) == {
        10,
        20,
        30,
    }
    assert set(made.targets.tolist()) <= {0.5, 1.5, 2.5}


def test_shares_add_up() -> None:
    assert shares(10, 4) == [3, 3, 2, 2] and shares(0, 2) == [0, 0]


@pytest.mark.parametrize("variant", ["online", "offline"])
def test_the_likelihood_ratio_knows_that_records_differ(variant: Any) -> None:
    """What is confident for one record is doubtful for another; the attack by one threshold for all sees little."""
    rng, shadows, count = np.random.default_rng(6), 32, 600
    level = rng.normal(0, 5, count)
    coins, target = rng.random((shadows, count)) < 0.5, rng.random(count) < 0.5
    confidences = level + 2.0 * coins + rng.standard_normal((shadows, count))
    seen = level + 2.0 * target + rng.standard_normal(count)
    scores = likelihood_ratio(seen, confidences, coins, variant)
    by_ratio_, by_one = (attack(s[target], s[~target]).auc for s in (scores, seen))
    assert by_ratio_ > 0.85 > 0.65 > by_one


def test_a_linear_layer_gives_its_input_away() -> None:
    layer, x = nn.Linear(12, 4), torch.randn(1, 12)
    nn.functional.cross_entropy(layer(x), torch.tensor([2])).backward()
    assert layer.weight.grad is not None and layer.bias.grad is not None
    rebuilt = by_ratio(layer.weight.grad, layer.bias.grad)
    assert similarity(x[0].double().numpy(), rebuilt) > 0.999
    assert np.allclose(rebuilt, x[0].numpy(), atol=1e-4)


def test_similarity_and_shapes_of_pictures() -> None:
    assert similarity(np.arange(3.0), np.full(3, np.nan)) == similarity(np.ones(3), np.arange(3.0)) == 0.0
    assert shape_of((1, 28, 28)) == (28, 28) and shape_of((64,)) == (8, 8) and shape_of((30,)) == (3, 10)
    assert shape_of((7,)) == (1, 7)


def attack(scores_in: Any = (3.0, 2.0), scores_out: Any = (1.0, 2.0), **changes: Any) -> Attack:
    fields: dict[str, Any] = {
        "method": "one-run",
        "unit": "record",
        "claim": 3.0,
        "delta": 1e-5,
        "canaries": 4,
        "guesses": 4,
        "correct": 3,
        "lower_bound": 0.456,
        "confidence": 0.95,
        "scores_in": tuple(scores_in),
        "scores_out": tuple(scores_out),
        "view": "everything",
    }
    return Attack(**{**fields, **changes})


def record(*attacks: Attack) -> AuditRecord:
    images = [
        Image(title="the record", values=(0.0, 1.0, 2.0, 3.0)),
        Image(title="seen", values=(0.0, 9.0, -9.0, math.pi), similarity=0.1234),
    ]
    return AuditRecord(
        name="<b>clinics</b>",
        started=datetime(2030, 1, 1, tzinfo=UTC),
        seed=1,
        sites=4,
        parameters=62,
        rounds=5,
        attacks=attacks,
        inversion=Inversion(attack="ratio", shape=(2, 2), images=tuple(images)),
        skipped=("clients: nothing is promised for clients",),
        versions={"python": "3"},
    )


def test_an_attack_that_measured_more_than_was_claimed_is_never_called_within() -> None:
    assert attack().verdict == "within" and attack(lower_bound=3.0).verdict == "within"
    assert attack(lower_bound=3.0001).verdict == "CROSSED" and record(attack(lower_bound=9.0)).crossed
    assert attack(claim=math.inf).verdict == "no claim" and not attack(claim=math.inf).crossed
    assert lower(0.456) == "0.45" and lower(2.999) == "2.99"  # a lower bound is rounded down


def test_the_curve_of_an_attack() -> None:
    made = attack()
    assert made.roc() == ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])  # the two scores of 2 are called alike
    assert made.auc == pytest.approx(0.875)
    assert made.hits_at(0.0) == 0.5 and made.hits_at(0.5) == 1.0
    rng = np.random.default_rng(7)
    assert abs(attack(rng.random(2000), rng.random(2000)).auc - 0.5) < 0.05


def test_I17_every_figure_of_an_audits_page_is_marked_local_and_nothing_names_an_address() -> None:
    html = render_audit_page(
        record(attack(), attack(method="clients", unit="client", lower_bound=9.0, estimate=1.5))
    )
    page = Page(html)
    for text, stack in page.texts:
        if any(letter.isdigit() for letter in text) and stack[1]["tag"] == "body":
            assert nearest_mark(stack) == "local", text
    assert MARK in html and "not private, local only" in MARK
    assert html.count("THE CLAIM IS FALSE") == 1 and HONESTY.split(".")[0] in html
    assert "://" not in html and "<b>clinics" not in html and "<script" not in html
    ids = [element["id"] for element in page.elements if "id" in element]
    assert len(ids) == len(set(ids))
    assert "not promised" not in html and "nothing is promised for clients" in html
    assert render_audit_page(record())  # only a picture


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--method", "guess"], "--method: must be one of one-run, clients, membership, inversion, all"),
        (["--canaries", "3"], "--canaries: 10 canaries are the fewest"),
        (["--set", "insecure_seeded_noise=true"], "insecure_seeded_noise: noise from a seed is no privacy"),
    ],
)
def test_a_wrong_wish_is_one_line(
    arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.toml"
    file.write_text('name = "a"\n')
    with pytest.raises(SystemExit) as ended:
        main(["audit", "privacy", str(file), *arguments])
    assert ended.value.code == 2
    assert line in capsys.readouterr().err


NUMERIC = 'classes = ["a", "b"]\n[data.schema.columns.age]\nkind = "numeric"\nrange = [0.0, 9.0]\n'
SMALL = """
name = "small"
[partition]
num_clients = 3
[task.model]
name = "logistic"
[training]
rounds = 1
local_steps = 1
[secure_aggregation]
engine = "ideal"
"""


def test_as_many_trainings_are_announced_as_are_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, parts = config.loads(SMALL), list[str]()
    audit(experiment, tmp_path / "told", seed=1, on_part=parts.append)
    made = [part.partition(":")[0] for part in parts if ": training " in part]
    assert {name: made.count(name) for name in METHODS} == trainings(experiment, "all")
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    with pytest.raises(SystemExit) as ended:
        main(["audit", "privacy", str(file), "--method", "one-run", "--out", str(tmp_path / "run")])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("1 training of 1 round (one-run 1)\n")
    assert (
        ahead({"one-run": 1, "membership": 33}, 20) == "34 trainings of 20 rounds (one-run 1, membership 33)"
    )
    learned = config.loads(f'{SMALL}[data.schema]\nlabel = "y"\nscaling = "federated"\n{NUMERIC}')
    assert "membership" not in trainings(learned, "all")


def test_a_bar_counts_the_trainings_that_are_over() -> None:
    screen = StringIO()
    with progress(Console(file=screen, force_terminal=True, width=100), 3, quiet=False) as tell:
        for part in ("dividing the data", "training a", "training b", "guessing"):
            tell(f"one-run: {part}")
    assert "2/3" in screen.getvalue() and "3/3" not in screen.getvalue()
