"""Every family samples as plain diffusers does, with the adapter that diffpo exports: tiny real pipelines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CLIPS, IMAGES, as_called, open_plain
from tiny_steps import FACTS, make, move

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler  # noqa: E402
from peft import PeftModel  # noqa: E402

from diffpo.errors import UserError  # noqa: E402
from diffpo.generation.generate import generate  # noqa: E402
from diffpo.generation.sampling import sample_clips  # noqa: E402
from diffpo.generation.settings import GenerateOptions, Sampler  # noqa: E402
from diffpo.media.folder import open_clip, read_media  # noqa: E402
from diffpo.models import FAMILIES  # noqa: E402
from diffpo.models.base import LORA_FILE  # noqa: E402
from diffpo.models.finding import NETWORKS  # noqa: E402
from diffpo.models.lora import LoRA  # noqa: E402

PROMPTS = ["a red circle", "a blue square"]


def options(base: Path, tuned: Path, **changes) -> GenerateOptions:
    usual = {"model": str(base), "tuned": str(tuned), "seeds": (5,), "noise": "shared", "steps": 2, "guidance": 3.0}
    return GenerateOptions(**usual | {"batch": 1, "device": "cpu"} | changes)


def export(name: str, base: Path, folder: Path) -> Path:
    """Write an adapter of the tiny pipeline in `base` that changes much, with a strength that tensors do not tell."""
    policy, _ = make(base, "lora", rank=4, alpha=6.0)
    move(policy.network, 0.3)
    tuning = LoRA(path=str(base), rank=4, alpha=6.0, expert="high" if FAMILIES[FACTS[name].family].experts else None)
    tuning.save(folder, tuning.find(), policy.network, dict(policy.network.state_dict()))
    return folder


def load_adapter(pipeline, folder: Path) -> None:
    """Read an export as the model card says."""
    if (folder / LORA_FILE).is_file():
        pipeline.load_lora_weights(folder)
    else:
        name = next(name for name in NETWORKS if name in pipeline.components)
        setattr(pipeline, name, PeftModel.from_pretrained(getattr(pipeline, name), folder))


@pytest.mark.parametrize("name", IMAGES)
def test_every_family_with_its_adapter(pipelines, name, tmp_path):
    """What is exported makes the same image in plain diffusers, and another one than the base does."""
    folder, facts = pipelines(name), FACTS[name]
    final = export(name, folder, tmp_path / "final")
    negative = {"negative_prompt": "blue"} if facts.negative else {}
    side = facts.side
    size = {"size": (side, 2 * side)} if facts.large else {}  # others make their own, which is small
    generate(options(folder, final, **negative, **size), PROMPTS[:1], tmp_path / "out")
    told = {"num_inference_steps": 2, **dict(facts.guided)}
    told |= negative | ({"height": side, "width": 2 * side} if facts.large else {})
    told |= {key: value for key, value in facts.call if key == "use_resolution_binning" and facts.large}
    pipeline = open_plain(folder)
    pipeline.set_progress_bar_config(disable=True)
    told = as_called(pipeline, told)

    def plain() -> np.ndarray:
        return np.asarray(pipeline(prompt=PROMPTS[0], generator=torch.Generator().manual_seed(5), **told).images[0])

    base = plain()
    sampler = Sampler(steps=1, guidance=3.0, size=(2 * side, side), **negative)
    images = sample_clips(pipeline, PROMPTS[:2], [0, 1], sampler)
    assert [image.first.size for image in images] == [(side, 2 * side)] * 2
    load_adapter(pipeline, final)
    (item,) = read_media(tmp_path / "out")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / item.file)), tuned := plain())
    assert not np.array_equal(base, tuned)


@pytest.mark.parametrize("name", CLIPS)
def test_every_family_of_clips_with_its_adapter(pipelines, name, tmp_path):
    """The frames of plain diffusers with the export, with the rate that the model was made for."""
    folder, how = pipelines(name), CLIPS[name]
    final = export(name, folder, tmp_path / "final")
    size = (how["height"], how["width"])
    generate(options(folder, final, frames=how["num_frames"], size=size), PROMPTS[:1], tmp_path / "out")
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    told = as_called(pipeline, {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"} | how)

    def plain() -> np.ndarray:
        made = pipeline(PROMPTS[0], generator=torch.Generator().manual_seed(5), **told).frames[0]
        return (made * 255).round()

    base = plain()
    sampler = Sampler(steps=2, guidance=3.0, frames=how["num_frames"], size=size)
    assert len(sample_clips(pipeline, PROMPTS[:2], [0, 1], sampler)) == 2, "two at a time"
    load_adapter(pipeline, final)
    (item,) = read_media(tmp_path / "out")
    clip = open_clip(tmp_path / "out", item)
    assert len(clip.frames) == item.frames == how["num_frames"]
    assert clip.fps == item.fps == FAMILIES[FACTS[name].family].fps
    np.testing.assert_array_equal(np.stack([np.asarray(f) for f in clip.frames]), tuned := plain())
    assert not np.array_equal(base, tuned)


def test_one_step_of_a_stretched_schedule_is_refused(pipelines, tmp_path):
    """diffusers divides zero by zero there; nothing is loaded or begun."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(pipelines("ltx") / "scheduler")
    scheduler.set_timesteps(sigmas=[1.0], mu=1.0)
    assert scheduler.sigmas[0].isnan()
    with pytest.raises(UserError, match=r"steps is 1, .* at 0\.1, .* give steps=2 or more"):
        generate(GenerateOptions(model=str(pipelines("ltx")), steps=1, device="cpu"), PROMPTS[:1], tmp_path / "out")
    assert not (tmp_path / "out").exists()
