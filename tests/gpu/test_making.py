"""Generation, scoring and encoding on a GPU: near what the CPU makes, and the same wherever rows stand in a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cards import DEVICE
from PIL import Image

pytestmark = pytest.mark.gpu
PROMPTS = ["thing 1", "thing 2", "thing 3"]


def made(world, name: str, device, dtype: str) -> np.ndarray:
    """Pictures `[n h w 3]` of some prompts."""
    from diffpo.generation.generate import generate
    from diffpo.generation.settings import GenerateOptions

    options = GenerateOptions(model=str(world.folder / "sd15"), device=str(device), dtype=dtype, steps=4, size=(64, 64))
    work = generate(options, PROMPTS, world.folder / name)
    files = sorted(file for file in work.folder.iterdir() if file.suffix == ".png")
    assert len(files) == len(PROMPTS)
    return np.stack([np.asarray(Image.open(file).convert("RGB"), dtype=float) for file in files])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pictures_look_as_the_cpus(world, dtype):
    """The noise is drawn on the CPU, so that the same prompt and seed give the same picture on both. (Torch may draw
    other numbers in half precision than in single.)"""
    here, there = (
        made(world, f"pictures-{dtype}-{number}", place, dtype) for number, place in enumerate(("cpu", DEVICE))
    )
    assert here.std() > 10, "the pictures show something"
    assert np.abs(here - there).mean() < 4


def test_pictures_of_float16_show_something(world):
    assert made(world, "pictures-float16", DEVICE, "float16").std() > 10


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_agree_with_the_cpus(dtype):
    """PickScore's code with the small CLIP that comes with the package."""
    from diffpo.scorers.pickscore import PickScore

    draws = np.random.default_rng(0)
    images = [Image.fromarray(draws.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(5)]
    prompts = [f"a red circle left of a blue square, {i}" for i in range(5)]
    here = PickScore(path="shapes:pickscore", device="cpu").score(images, prompts)
    there = PickScore(path="shapes:pickscore", device=str(DEVICE), dtype=dtype, batch=2).score(images, prompts)
    assert there.device.type == "cpu" and there.dtype == torch.float32
    torch.testing.assert_close(there, here, rtol=2e-3 if dtype == "float32" else 3e-2, atol=2e-2)


@pytest.mark.usefixtures("deterministic")
def test_encodings_are_near_the_cpus(world):
    """Convolutions in TF32, torch's default on a card, keep ten bits; the texts have none."""
    from diffpo.models.encoders import Encoders
    from diffpo.models.lora import LoRA

    there, here = (Encoders(LoRA(path=str(world.folder / "sd15")), place) for place in (DEVICE, "cpu"))
    frames = torch.randint(0, 256, (3, 1, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for ours, theirs in zip(there.encode_media(frames), here.encode_media(frames), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.std()))
    ours, theirs = there.encode_prompt("thing 1")["text"], here.encode_prompt("thing 1")["text"]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
