"""A batch that passes the model in parts, to bound memory: the step is that of the whole batch."""

from itertools import count

import pytest
import torch

from client.bookkeeping import BookKeeping
from client.private_gradients import PrivateGradients
from client.training import PlainGradients, portions
from tacit.privacy.noise import Stream
from tests.unit.test_client_gradients import CLIP, KEY, Classify, batch, filled, flat, made, with_both


@pytest.mark.parametrize(("rows", "most", "sizes"), [(0, 3, []), (7, 0, [7]), (7, 3, [3, 3, 1]), (7, 7, [7])])
def test_parts_are_the_batch_in_order(rows, most, sizes):
    records = batch(rows)
    parts = list(portions(records, most))
    assert [part.num_rows for part in parts] == sizes
    if parts:
        assert torch.equal(torch.cat([part.features for part in parts]), records.features)
        assert torch.equal(torch.cat([part.targets for part in parts]), records.targets)


@with_both
@pytest.mark.parametrize("most", [1, 4, 100])
def test_a_batch_in_parts_has_the_gradient_of_the_whole_batch_and_its_noise_once(engine, name, most):
    records = batch(9)
    whole = filled(made(name), records, engine, noise=2.0)
    model = made(name)
    gradients = engine(model, Classify(), CLIP, 2.0, most)
    for _ in range(2):  # nothing of a step is left for the next one
        torch.testing.assert_close(filled(model, records, gradients=gradients), whole, rtol=0, atol=1e-5)
    filled(model, batch(0), gradients=gradients)
    drawn = torch.from_numpy(Stream(KEY).gaussian(whole.numel(), 2.0 * CLIP)).float()
    torch.testing.assert_close(flat(model), drawn, rtol=0, atol=1e-6)


@pytest.mark.parametrize("most", [1, 4, 100])
def test_a_batch_in_parts_has_the_gradient_of_the_whole_batch_without_privacy_too(most):
    models = [made("mlp") for _ in range(2)]
    for model, size in zip(models, (0, most), strict=True):
        PlainGradients(model, Classify(), size).fill(batch(9), 3.0, Stream(KEY))
    torch.testing.assert_close(flat(models[1]), flat(models[0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("engine", [PrivateGradients, BookKeeping])
def test_nothing_of_a_step_that_failed_half_way_is_in_the_next_one(engine):
    def fail(*_):
        if next(calls) == 2:
            raise ArithmeticError

    model, calls = made("mlp"), count(1)
    gradients = engine(model, Classify(), CLIP, 0.0, 4)
    model[0].register_forward_pre_hook(fail)
    with pytest.raises(ArithmeticError):
        gradients.fill(batch(9), 1.0, Stream(KEY))
    got = filled(model, batch(5), gradients=gradients)
    torch.testing.assert_close(got, filled(made("mlp"), batch(5), engine), rtol=0, atol=1e-5)


@pytest.mark.parametrize("where", ["loss", "clipping"])
@pytest.mark.parametrize("part", [1, 2])
def test_a_step_that_fails_leaves_no_gradient_and_nothing_of_it_is_in_a_later_one(where, part, monkeypatch):
    """An error out of memory, say, in the one part of a batch or the other."""
    records, model, calls = batch(8), made("mlp"), count(1)
    wanted = filled(made("mlp"), records, noise=2.0)

    def fails(real):
        def once(*args):
            if next(calls) == part:
                raise MemoryError
            return real(*args)

        return once

    task = Classify()
    gradients = PrivateGradients(model, task, CLIP, 2.0, 4)
    with monkeypatch.context() as patched:
        if where == "loss":
            patched.setattr(task, "loss", fails(task.loss))
        else:
            optimizer = type(gradients.optimizer)
            patched.setattr(optimizer, "clip_and_accumulate", fails(optimizer.clip_and_accumulate))
        with pytest.raises(MemoryError):
            gradients.fill(records, 1.0, Stream(KEY))
    assert all(parameter.grad is None for parameter in model.parameters())
    for _ in range(3):
        torch.testing.assert_close(filled(model, records, gradients=gradients), wanted, rtol=0, atol=1e-5)
