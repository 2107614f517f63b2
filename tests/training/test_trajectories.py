"""The reference's inversions on disk: the same points as without, made once, never stale."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from runs import World, contents, metrics
from tiny_steps import draws, make, move, pair_batch

from diffpo.core.inversion import Inversion, follow, invert, trajectory
from diffpo.errors import ConfigError
from diffpo.methods import METHODS

KEPT = {"method.inversion": {"steps": 4, "invert_with": "reference", "cache": True}, "train.eval_every": 2}
TIMES = {
    "discrete": torch.tensor([0, 1, 249, 250, 251, 999]),
    "flow": torch.tensor([1e-3, 0.2, 0.4, 0.6, 0.95, 0.999]).double(),
}


@pytest.fixture
def world(tmp_path):
    return World.make(tmp_path, rows=12)


def settings(world, **more):
    return {
        "method.name": "inpo",
        "data.validation_fraction": 0.3,
        "data.cache_dir": str(world.folder / "cache"),
    } | more


@pytest.mark.parametrize(
    ("name", "landing"), [*product(("sd15", "sd2", "sdxl"), ("exact", "released")), ("sd3", "exact")]
)
def test_following_is_inverting(pipelines, name, landing):
    """At every t, without a network: the very points that the network would lead to."""
    _, reference = make(pipelines(name), "full", torch.float64)
    batch, inversion = pair_batch(name, list(range(6)), torch.float64), Inversion(steps=4, landing=landing)
    kept = trajectory(reference, batch.latent, batch.cond, inversion)
    t = TIMES["flow" if name == "sd3" else "discrete"]
    found = follow(reference.process, kept, t, inversion)
    walked = invert(reference, batch.latent, batch.cond, t, draws(batch), inversion)
    for one, other in zip(found, walked, strict=True):
        torch.testing.assert_close(one.z, other.z, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one.target, other.target, rtol=1e-7, atol=1e-7)


def test_kept_inversions_are_read_and_not_made_again(world, monkeypatch):
    """The second run computes none; both learn the same, and nothing inverts while they learn."""
    calls = []
    monkeypatch.setattr("diffpo.methods.base.invert", lambda *_: calls.append("invert"))
    monkeypatch.setattr("diffpo.training.trajectories.trajectory", lambda *a: calls.append("kept") or trajectory(*a))
    first = world.train("first", settings(world, **KEPT))
    made = len(calls)
    assert set(calls) == {"kept"} and made == 12  # every row once, those held out too
    again = world.train("again", settings(world, **KEPT))
    assert len(calls) == made
    assert metrics(first) == metrics(again)
    assert len(list((world.folder / "cache" / "trajectories").iterdir())) == 1  # for both splits


def test_the_caption_or_the_empty_one(world):
    """Where captions are dropped, the inversion was made without them; so dropout changes what is learned."""
    runs = [
        contents(world.train(f"drop{p}", settings(world, **KEPT, **{"data.caption_dropout": p}))) for p in (0.0, 1.0)
    ]
    assert runs[0]["metrics"][0]["error/chosen"] != runs[1]["metrics"][0]["error/chosen"]


@pytest.mark.parametrize("more", [{"steps": 3}, {"renoise": 1}, {"landing": "released"}])
def test_another_inversion_has_other_files(world, more):
    world.train("one", settings(world, **KEPT))
    world.train("other", settings(world, **(KEPT | {"method.inversion": KEPT["method.inversion"] | more})))
    assert len(list((world.folder / "cache" / "trajectories").iterdir())) == 2


def test_other_weights_have_other_files(world):
    """A reference that starts from a tuned network is another one, under whatever path."""
    tuned = world.train("tuned", {"model.name": "full"})
    world.train("base", settings(world, **KEPT))
    world.train("from", settings(world, **KEPT, **{"model.denoiser": str(tuned)}))
    assert len(list((world.folder / "cache" / "trajectories").iterdir())) == 2


def test_the_points_do_not_depend_on_the_policy(pipelines):
    policy, reference = make(pipelines("sd15"), "lora", torch.float64)
    batch, inversion = pair_batch("sd15", [0, 1], torch.float64), Inversion(steps=2)
    before = trajectory(reference, batch.latent, batch.cond, inversion)
    move(policy.network)
    after = trajectory(reference, batch.latent, batch.cond, inversion)
    assert torch.equal(before.chosen, after.chosen) and before.chosen.shape[:2] == (2, 3)


def test_what_cannot_be_kept_is_refused(world):
    with pytest.raises(ConfigError, match="needs invert_with=reference"):
        METHODS["inpo"](inversion=Inversion(cache=True))
    with pytest.raises(ConfigError, match=r"needs data\.cache=true"):
        world.train("live", settings(world, **KEPT, **{"data.cache": False}))
