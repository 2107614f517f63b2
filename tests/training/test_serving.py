"""Inversions of several micro-batches together: the same points, in as few calls as their rows fill."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from runs import World, difference, forget_accelerator, metrics, weights
from tiny_steps import draws, moved, pair_batch

from diffpo.config.run import Train
from diffpo.core.inversion import Inversion, invert
from diffpo.core.step import invert_together
from diffpo.core.types import Pair
from diffpo.methods import METHODS
from diffpo.models.tuning import Full
from diffpo.training.serving import choose_calls

SIZES = (3, 1, 4)
"""Pairs in each micro-batch."""
SAME = {"rtol": 1e-12, "atol": 1e-12}


class Counted:
    """A denoiser, and how many rows each call held."""

    def __init__(self, denoiser):
        self.denoiser, self.process, self.rows = denoiser, denoiser.process, []

    def predict(self, z, t, cond):
        self.rows.append(len(z))
        return self.denoiser.predict(z, t, cond)

    def lockstep(self, n):
        return self.denoiser.lockstep(n)


def micro_batches(name, sizes=SIZES):
    rows = iter(torch.arange(100, 100 + sum(sizes)).tolist())
    return [pair_batch(name, [next(rows) for _ in range(size)], torch.float64) for size in sizes]


def apart(denoiser, batches, inversion):
    """Each micro-batch by itself."""
    points = []
    for batch in batches:
        t = denoiser.process.sample_time(draws(batch), batch.shape)
        points.append(invert(denoiser, batch.latent, batch.cond, t, draws(batch), inversion).map(lambda x: x.z))
    return points


def together(denoiser, batches, inversion, most, least=0):
    """All of them, by a method that inverts so."""
    method = METHODS["inpo"](inversion=inversion)
    return invert_together(method, denoiser, None, batches, 3, 0, most=most, least=least)


HOW = {
    "ddim": Inversion(steps=4),
    "released": Inversion(steps=4, landing="released", eta=0.1),
    "renoise": Inversion(steps=3, renoise=1, eta=0.1),
}


@pytest.mark.parametrize("name", ["sd15", "sd3", "sd2"])
@pytest.mark.parametrize("how", HOW)
def test_together_they_come_to_the_same_points(pipelines, name, how):
    """In double precision, by the policy or by the reference; each row at its own time, and with its own draws."""
    inversion = replace(HOW[how], landing="exact") if name == "sd3" else HOW[how]
    batches = micro_batches(name)
    for denoiser in moved(pipelines(name)):
        expected = apart(denoiser, batches, inversion)
        for least in (0, 5):
            found = together(denoiser, batches, inversion, 5, least)
            for batch, points in zip(found, expected, strict=True):
                torch.testing.assert_close(batch.inverted.chosen, points.chosen, **SAME)
                torch.testing.assert_close(batch.inverted.rejected, points.rejected, **SAME)


@pytest.mark.parametrize(("sizes", "most"), [((1,) * 12, 2), ((3, 1, 4), 5), ((4,), 8)])
@pytest.mark.parametrize("how", ["ddim", "renoise"])
def test_no_more_calls_than_their_rows_fill(pipelines, how, sizes, most):
    """As many calls as all rows fill, or as the longest way has steps, where that is more; never an idle row."""
    denoiser, batches = moved(pipelines("sd15"))[0], micro_batches("sd15", sizes)
    one, served, full = (Counted(denoiser) for _ in range(3))
    apart(one, batches, HOW[how])
    together(served, batches, HOW[how], most)
    process, asked = denoiser.process, 1 + HOW[how].renoise
    times = [process.sample_time(draws(batch), batch.shape) for batch in batches]
    steps = [process.path(t, HOW[how].steps, HOW[how].landing, batches[0].shape).steps * asked for t in times]
    total, longest = 2 * int(torch.cat(steps).sum()), int(torch.cat(steps).max())
    assert sum(one.rows) == sum(served.rows) == total
    assert len(one.rows) == sum(int(each.max()) for each in steps)
    assert len(served.rows) == max(longest, -(-total // most)) and max(served.rows) <= most
    together(full, batches, HOW[how], most, most)
    assert full.rows == [most] * len(served.rows), "one shape"


def test_images_of_other_sizes_are_inverted_apart(pipelines):
    """And every batch keeps its place."""
    denoiser = moved(pipelines("sd15"))[0]
    a, b, c = micro_batches("sd15", (2, 1, 2))
    narrow = replace(b, latent=Pair(*(x[..., :4] for x in b.latent)))
    found = together(denoiser, [a, narrow, c], HOW["ddim"], 4)
    assert [batch.inverted.chosen.shape[-1] for batch in found] == [8, 4, 8]
    expected = apart(denoiser, [a, narrow, c], HOW["ddim"])
    for batch, points in zip(found, expected, strict=True):
        torch.testing.assert_close(batch.inverted.rejected, points.rejected, **SAME)


def calls(device, inversion=None, checkpointing=False, **train):
    model = Full(path="none", gradient_checkpointing=checkpointing)
    found = choose_calls(Train(**{"steps": 1, **train}), model, inversion or Inversion(), torch.device(device))
    return found.window, found.most, found.least


def test_a_processor_is_asked_about_as_many_images_as_a_training_forward_holds():
    """Or as told, and fewer where fewer are left; what is compiled is always asked about as many."""
    two, one = ({"batch": 4, "accumulate": n} for n in (2, 1))
    assert calls("cpu", **two) == (8, 8, 0) and calls("cpu", Inversion(at_once=32), **two) == (8, 32, 0)
    assert calls("cpu", **two, split_forward=True) == (8, 4, 0)
    assert calls("cpu", **two, compile="regional") == (8, 8, 8)
    assert calls("cpu", **one, compile="regional") == (8, 4, 4)
    assert calls("cpu", Inversion(at_once=6), **one, compile="whole") == (8, 6, 6)
    assert calls("cpu", batch=1, compile="regional") == (8, 2, 2)


@pytest.mark.parametrize("compiled", [{}, {"compile": "regional"}])
def test_a_gpu_is_always_asked_about_equally_many(compiled):
    """16 pairs, 5 steps and as many corrections: 192 answers on average, 10 at most for one image, so 20 a call.

    Four micro-batches have 768, so 77 a call; no more than four times a training forward, or one with checkpointing.
    """
    smpo, inpo = Inversion(steps=5, renoise=1), Inversion(steps=10)
    assert calls("cuda", smpo, batch=16, **compiled) == (1, 20, 20)
    assert calls("cuda", inpo, batch=16, **compiled) == (1, 18, 18)
    assert calls("cuda", smpo, batch=16, accumulate=4, **compiled) == (4, 77, 77)
    assert calls("cuda", smpo, batch=8, accumulate=8, **compiled) == (8, 64, 64)
    assert calls("cuda", smpo, True, batch=8, accumulate=8, **compiled) == (8, 16, 16)
    assert calls("cuda", smpo, batch=8, accumulate=8, split_forward=True, **compiled) == (8, 32, 32)
    assert calls("cuda", Inversion(steps=5, at_once=48), batch=8, accumulate=8, **compiled) == (8, 48, 48)


def test_the_windows_of_an_update_are_alike():
    """Ten micro-batches are five and five: eight and two would leave most of the calls for the two idle."""
    assert [calls("cuda", accumulate=n)[0] for n in (1, 8, 9, 10, 16, 17)] == [1, 8, 5, 5, 8, 6]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    yield World.make(tmp_path_factory.mktemp("served"))
    forget_accelerator()


SERVED = {
    "method.name": "smpo",
    "data.path": "labelled.jsonl",
    "train.dtype": "float64",
    "data.validation_fraction": 0.3,
    "train.eval_every": 2,
    "train.steps": 2,
    "train.batch": 1,
}


def test_a_run_learns_as_batch_by_batch(world, monkeypatch):
    """With more micro-batches than are inverted together, held-out pairs, and ReNoise: what the step itself finds.

    A run that goes on learns the same, bit for bit.
    """
    changes = SERVED | {"train.accumulate": 4, "method.inversion": {"steps": 3, "renoise": 1, "at_once": 5}}
    monkeypatch.setattr("diffpo.training.serving.WINDOW", 3)
    served = world.train("served", changes)
    world.train("resumed", changes | {"train.steps": 1, "train.eval_every": 1})
    resumed = world.train("resumed", changes)
    assert metrics(resumed)[-1] == metrics(served)[-1] and difference(weights(resumed), weights(served)) == 0
    monkeypatch.setattr("diffpo.training.update.inverted", lambda learner, batches, epoch: batches)
    plain = world.train("plain", changes)
    for line, expected in zip(metrics(served), metrics(plain), strict=True):
        assert line == pytest.approx(expected, rel=1e-9, abs=1e-10)
    assert difference(weights(served), weights(plain)) < 1e-10
