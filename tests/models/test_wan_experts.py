"""Wan 2.2's two networks: each trained on its own times in a run of its own, exported together, sampled with both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from runs import World, metrics
from tiny import CLIPS
from tiny_steps import draws, make, pair_batch

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from diffusers import DiffusionPipeline, WanTransformer3DModel  # noqa: E402

from diffpo.config.run import build  # noqa: E402
from diffpo.core.process import Time  # noqa: E402
from diffpo.core.types import Rng  # noqa: E402
from diffpo.errors import UserError  # noqa: E402
from diffpo.generation.generate import generate  # noqa: E402
from diffpo.generation.settings import GenerateOptions  # noqa: E402
from diffpo.media.folder import open_clip, read_media, read_settings  # noqa: E402

PROMPT = "a red circle moves left"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("experts"), "wan-a14b", rows=4)


def run(world, name, tuning, expert, **more):
    sample = {"sample.prompts": [PROMPT], "sample.frames": 5, "sample.size": [16, 16], "train.sample_every": 2}
    changes = {"model.name": tuning, "model.expert": expert, "train.steps": 2, **sample}
    return world.train(name, changes | {f"model.{key}": value for key, value in more.items()}, family="wan-a14b")


@pytest.fixture(scope="module", params=["lora", "full"])
def runs(request, world):
    """The run of the network for high noise, and then that for low noise, whose export holds both."""
    tuning = request.param
    high = run(world, f"{tuning}-high", tuning, "high")
    return tuning, high, run(world, f"{tuning}-low", tuning, "low", beside=str(high))


def clip(base, tuned, out):
    options = {"frames": 5, "size": (16, 16), "steps": 6, "guidance": 3.0, "noise": "shared", "device": "cpu"}
    generate(GenerateOptions(model=str(base), tuned=str(tuned), **options), [PROMPT], out)
    return np.stack([np.asarray(frame) for frame in open_clip(out, read_media(out)[0]).frames])


def plain(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": 6, "guidance_scale": 3.0, "output_type": "np", **CLIPS["wan-a14b"]}
    return (
        (pipeline(PROMPT, generator=torch.Generator().manual_seed(0), **how).frames[0] * 255).round().astype(np.uint8)
    )


def test_each_learns_and_both_are_exported_together(world, runs, tmp_path):
    """Plain diffusers with both tuned networks: the clip of `generate --tuned`; one alone makes another clip."""
    tuning, high, low = runs
    for folder in (high, low):
        assert metrics(folder)[0]["rewards/margins"] == 0.0 != metrics(folder)[-1]["rewards/margins"]
        assert (folder / "samples" / "step-000002.png").is_file()
    base, final = world.folder / "wan-a14b", low / "final"
    pipeline, untuned = (DiffusionPipeline.from_pretrained(base) for _ in range(2))
    if tuning == "lora":
        pipeline.load_lora_weights(final, adapter_name="high")
        pipeline.load_lora_weights(final / "transformer_2", load_into_transformer_2=True, adapter_name="low")
    else:
        pipeline.transformer = WanTransformer3DModel.from_pretrained(final / "transformer")
        pipeline.transformer_2 = WanTransformer3DModel.from_pretrained(final / "transformer_2")
    both = clip(base, low, tmp_path / "both")
    np.testing.assert_array_equal(both, plain(pipeline))
    alone = clip(base, high, tmp_path / "high")
    assert not np.array_equal(alone, both) and not np.array_equal(alone, plain(untuned))
    kind = "lora_weights" if tuning == "lora" else "denoiser_weights"
    identities = {read_settings(tmp_path / name)[kind] for name in ("both", "high")}
    assert len(identities) == 2, "what the second network is counts"


@pytest.mark.parametrize(("expert", "low", "high"), [("high", 0.5, 1.0), ("low", 0.0, 0.5)])
def test_each_has_its_own_range_of_times(pipelines, expert, low, high):
    """The boundary is a noise level, after the shift; what the config says of the range is a part of it."""
    process = make(pipelines("wan-a14b"), "full", expert=expert)[0].process
    t = process.sample_time(Rng(0, 0, torch.arange(2000)), (4, 3, 4, 4))
    assert low <= t.min() < low + 0.1 and high - 0.1 < t.max() <= high
    half = make(pipelines("wan-a14b"), "full", expert=expert, time=Time(high=0.5))[0].process
    assert half.time.low == process.time.low
    assert half.time.high == pytest.approx((process.time.low + process.time.high) / 2)
    batch = pair_batch("wan-a14b", [0])
    assert low <= process.sample_time(draws(batch), batch.shape) <= high


def test_the_two_networks_are_different_ones(pipelines):
    first, second = (make(pipelines("wan-a14b"), "full", expert=expert)[0] for expert in ("high", "low"))
    assert not torch.equal(first.network.proj_out.weight, second.network.proj_out.weight)


def test_settings_that_do_not_go_together(world, pipelines, tmp_path):
    tree = world.tree("never", {"model.expert": "high", "method.name": "inpo"}, "wan-a14b")
    with pytest.raises(UserError, match=r"method\.inversion: walks through all noise levels"):
        build(tree)
    with pytest.raises(UserError, match=r"has two networks, .*: say model\.expert=high or low"):
        world.train("never", {}, family="wan-a14b")
    with pytest.raises(UserError, match=r"model\.expert is low, but a WanPipeline like .* has one network"):
        make(pipelines("wan"), "full", expert="low")
    with pytest.raises(UserError, match=r"model\.beside is .*, which holds no LoRA of the other expert"):
        make(pipelines("wan-a14b"), "lora", expert="low", beside=str(tmp_path))
