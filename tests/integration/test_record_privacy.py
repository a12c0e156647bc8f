"""Re:cord-play over a whole site, from file to bytes: two files that differ in one row, the same randomness.

The neighbour is shown the gradients that the first site released, because later steps are functions of what was
released before. Whatever differs then must be within the clip norm, and everything behind the noise must be equal.
"""

import numpy as np
import pytest
import torch

from client import submission
from client.evaluation import record_metrics
from client.participant import Participant, Run
from client.private_gradients import PrivateGradients
from client.sessions import MemorySessions
from client.site import Site
from tacit.data.preprocessing import selected_rows
from tacit.data.readers import read_table
from tacit.data.schema import Schema
from tacit.encoding import metric_sensitivity as sensitivity
from tacit.tasks import Records
from tacit.tasks.tabular import TabularClassification
from tests.unit.client_sites import (
    DECLARED,
    RECORD,
    Round,
    experiment,
    model,
    participants,
    rows,
    setup_request,
    write_site,
    write_sites,
)

CLIP = 0.8
ADDED = {
    "an ordinary row": "43.5,1.1,a,1,train",
    "an outlier": "1e6,1e6,never seen,0,train",
    "an outlier below": "-1e6,-1e6,b,1,train",
    "empty cells": ",,,1,train",
    "a row that is held out": "43.5,1.1,a,1,test",
}


def settings(**changes):
    record = {**RECORD, "max_grad_norm": CLIP, **changes.pop("record", {})}
    return experiment(privacy={"record": record}, insecure_seeded_noise=True, **changes)


class Played:
    """The engine of a site, recording the clipped sums; with `released`, the gradients that others have seen."""

    def __init__(self, trainer, released=None):
        self.released, self.sums, self.noised, self.normalisers = released, [], [], []
        self.real = trainer.gradients
        self.parameters = list(trainer.model.parameters())
        self.model, self.twin = trainer.model, trainer.task.model()
        self.silent = type(self.real)(self.twin, trainer.task, CLIP, 0.0)

    def fill(self, batch, normaliser, noise):
        self.twin.load_state_dict(self.model.state_dict())
        self.silent.fill(batch, 1.0, noise)
        self.sums.append(torch.cat([p.grad.double().reshape(-1) for p in self.twin.parameters()]))
        self.real.fill(batch, normaliser, noise)
        self.normalisers.append(normaliser)
        if self.released is not None:
            for parameter, gradient in zip(self.parameters, self.released[len(self.noised)], strict=True):
                parameter.grad = gradient.clone()
        self.noised.append([p.grad.clone() for p in self.parameters])


def play(run, folder, arrays, released=None, number=1):
    """One round of a site, to the vector that goes under the masks."""
    client = Participant(run, Site.open(folder), MemorySessions())
    real, played = run.trainer.gradients, Played(run.trainer, released)
    run.trainer.gradients = played
    try:
        request = setup_request(run, arrays, round_number=number)
        answer = submission.setup(client, request, arrays)
    finally:
        run.trainer.gradients = real
    return client, played, answer


def distances(run, tmp_path, row):
    """Per step, how far the clipped sums of two neighbours are apart; and the two clients."""
    data, arrays = rows(0), model(run.experiment)
    one = write_site(tmp_path / "one", data=data)
    other = write_site(tmp_path / "other", data=data + row + "\n")
    first, ours, _ = play(run, one, arrays)
    second, theirs, _ = play(run, other, arrays, released=ours.noised)
    assert ours.normalisers == theirs.normalisers  # I22, from file to step
    assert len(ours.sums) == len(theirs.sums)
    apart = [float((a - b).norm()) for a, b in zip(ours.sums, theirs.sums, strict=True)]
    return apart, first, second


ENGINES = {
    "book-keeping": {},
    "Opacus": {"task__model": {"name": "mlp", "hidden": [6]}},
    "every record in every step": {"training__sampling_rate": 1.0},
}


@pytest.fixture(scope="module", params=ENGINES)
def run(request):
    made = Run(settings(training__local_steps=6, **ENGINES[request.param]).to_toml())
    if request.param == "Opacus":
        made.trainer.gradients = PrivateGradients(
            made.trainer.model, made.task, CLIP, made.plan.noise_multiplier
        )
    return made


@pytest.fixture(scope="module")
def usual():
    return Run(settings().to_toml())


@pytest.mark.parametrize("kind", ADDED)
def test_I20_one_row_more_moves_each_clipped_sum_by_at_most_the_clip_norm_and_nothing_else(
    run, tmp_path, kind
):
    """Same draws, same noise, one row more at the end: the sums within C, and what is behind the noise bit-equal."""
    apart, first, second = distances(run, tmp_path, ADDED[kind])
    assert max(apart) <= CLIP + 1e-5
    held_out = kind == "a row that is held out"
    assert (max(apart) > 0.01) != held_out  # the row does take part: the test can fail
    ours, theirs = (client.session() for client in (first, second))
    assert np.array_equal(ours.encoded.values, theirs.encoded.values)  # delta, rounding and weight
    assert first.weight == second.weight


def test_I20_the_bytes_of_a_round_have_the_same_length_whatever_the_rows(usual, tmp_path):
    arrays = model(usual.experiment)
    lengths = set()
    for name, data in {
        "few": rows(0, train=1), "some": rows(0), "many": rows(0, train=300), "odd": rows(0) + ADDED["an outlier"]
    }.items():  # fmt: skip
        folders = [write_site(tmp_path / name / "north", data=data)]
        folders += write_sites(tmp_path / name / "rest")[1:]
        round_ = Round(participants(usual, folders), arrays).keys()
        masked = submission.mask(round_.clients[0], round_.mask_request)
        lengths.add((len(round_.mask_request), *map(len, masked)))
    assert len(lengths) == 1


@pytest.mark.parametrize("kind", ADDED)
def test_I20_the_records_that_were_there_are_read_bit_equal(usual, tmp_path, kind):
    task = usual.task
    for split in ("train", "test"):
        one = write_site(tmp_path / split / "one")
        other = write_site(tmp_path / split / "other", data=rows(0) + ADDED[kind] + "\n")
        before, after = (task.read(folder / "data.csv", split) for folder in (one, other))
        assert torch.equal(after.features[: before.num_rows], before.features)
        assert torch.equal(after.targets[: before.num_rows], before.targets)
        assert after.num_rows - before.num_rows == (ADDED[kind].endswith(split))


class PerSiteStandardised(TabularClassification):
    """What many pipelines do, and what the guarantee does not survive: the file's own mean and deviation."""

    def read(self, path, split):
        records = super().read(path, split)
        table = read_table(path, self.schema)
        features = records.features.clone()
        chosen = selected_rows(table, self.schema, split)
        for place, name in enumerate(("age", "dose")):
            column = torch.from_numpy(table.numbers(name)[chosen])
            features[:, place] = ((column - column.mean()) / column.std()).float()
        return Records(features, records.targets)


def test_I20_sees_per_site_standardisation(tmp_path):
    """The fault that the test above is there for moves a sum by many times the clip norm."""
    made = Run(settings(training__sampling_rate=1.0).to_toml())
    schema = made.experiment.data.columns
    assert isinstance(schema, Schema)
    made.task = PerSiteStandardised(schema, made.experiment.task.model)
    apart, _, _ = distances(made, tmp_path, ADDED["an outlier"])
    assert max(apart) > 3 * CLIP


@pytest.mark.parametrize("kind", ADDED)
def test_I20_one_row_more_moves_metric_sums_before_noise_by_at_most_their_sensitivity(usual, tmp_path, kind):
    task = usual.task
    net, sums = task.model(), []
    for name, data in (("one", rows(0)), ("other", rows(0) + ADDED[kind] + "\n")):
        records = task.read(write_site(tmp_path / name, data=data) / "data.csv", "test")
        sums.append(np.array(list(record_metrics(net, task, records).values())))
    moved = np.linalg.norm(sums[0] - sums[1])
    assert moved <= sensitivity(task) + 1e-9
    assert (moved > 0) == (kind == "a row that is held out")


def test_I22_q_steps_normaliser_weight_plan_and_delta_check_are_unchanged_when_a_row_is_added(tmp_path):
    """All of them follow from the declared sizes; the file of a site is asked for none.

    Not even where its rows are so many that delta would be above one over their number.
    """
    made = Run(settings(strategy={"weights": "declared"}).to_toml())
    arrays, seen = model(made.experiment), set()
    for name, n in (
        ("fewer", DECLARED - 1),
        ("declared", DECLARED),
        ("more", DECLARED + 1),
        ("thirty times", 30 * DECLARED),
    ):
        client, played, _ = play(made, write_site(tmp_path / name, data=rows(0, train=n)), arrays)
        plan = client.run.plan
        seen.add(
            (
                plan, plan.sampling_rate, plan.steps_per_round, tuple(played.normalisers), client.weight,
                client.declared_rows, plan.delta, int(client.session().encoded.values[-1]),
            )
        )  # fmt: skip
    assert len(seen) == 1
    assert plan.delta > 1 / (30 * DECLARED)


def test_G5_a_site_with_a_single_row_answers_like_any_other(usual, tmp_path):
    """The expected batch is far above the rows, most draws are empty, and nobody sees an early end."""
    folders = [write_site(tmp_path / "north", data=rows(0, train=1))]
    folders += write_sites(tmp_path / "rest")[1:]
    round_ = Round(participants(usual, folders), model(usual.experiment)).keys().vectors()
    encoded = round_.clients[0].session().encoded.values.copy()
    assert round_.sum().num_clients == 3
    assert np.abs(encoded[:-1]).max() > 100  # noise alone is an update like any other
