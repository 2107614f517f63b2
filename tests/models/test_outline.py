"""Outlines: the shapes that a family's own functions tell without weights are those that its encoders give."""

from __future__ import annotations

from math import prod

import pytest
import torch
from tiny import CLIPS

from diffpo.errors import UserError
from diffpo.models.encoders import Encoders
from diffpo.models.known import KNOWN, PUBLISHED
from diffpo.models.lora import LoRA
from diffpo.models.outline import CAPTION, assemble, of_known, outline
from diffpo.models.tuning import Full


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux2", "sana", "wan", "hunyuanvideo"])
def test_shapes_are_those_of_encodings(pipelines, name):
    tuning, clip = LoRA(path=str(pipelines(name))), CLIPS.get(name, {"num_frames": 1, "height": 32, "width": 64})
    frames, size = clip["num_frames"], (clip["height"], clip["width"])
    drawn, encoders = outline(tuning, size, frames), Encoders(tuning, "cpu")
    mean, _ = encoders.encode_media(torch.zeros(3, frames, *size, dtype=torch.uint8))
    states = encoders.encode_prompt(CAPTION)
    assert drawn.latent == tuple(mean.shape)
    if name != "wan":  # of which only the prompt's own tokens are kept
        assert drawn.cond.text.shape[1:] == states["text"].shape
    assert (drawn.cond.mask is None) == ("mask" not in states)
    assert drawn.cond.text.device.type == "meta"


def test_a_network_on_the_meta_device_is_that_of_the_folder(pipelines):
    tuning = Full(path=str(pipelines("sd15")))
    policy, reference = assemble(outline(tuning, (32, 32), 1), tuning, torch.float32, autocast=torch.bfloat16)
    from diffpo.models.load import load

    real, judge = load(tuning, torch.float32, True, autocast=torch.bfloat16)
    for ours, theirs in ((policy, real), (reference.denoiser, judge.denoiser)):
        told = [
            {n: (p.shape, p.dtype, p.requires_grad) for n, p in d.network.named_parameters()} for d in (ours, theirs)
        ]
        assert told[0] == told[1] and {p.device.type for p in ours.network.parameters()} == {"meta"}


@pytest.mark.parametrize(("name", "millions"), [("sd15", 859.520964), ("sdxl", 2567.463684), ("sd35m", 2243.17152)])
def test_known_models_have_their_number_of_parameters(name, millions):
    drawn = of_known(KNOWN[name], (1024, 1024), "known")
    with torch.device("meta"):
        network = drawn.make()
    assert sum(prod(p.shape) for p in network.parameters()) == round(millions * 1e6)
    assert drawn.latent[2:] == (128, 128)


def test_a_published_model_needs_no_file():
    (repo,) = [repo for repo, name in PUBLISHED.items() if name == "sdxl"]
    drawn = outline(LoRA(path=repo), (1024, 1024), 1)
    assert drawn.latent == (4, 1, 128, 128) and drawn.cond.pooled.shape == (1, 1280) and repo in drawn.told


def test_what_is_neither_here_nor_known_is_said():
    with pytest.raises(UserError, match=r"someone/model are not on this disk.*hf download someone/model"):
        outline(LoRA(path="someone/model"), (512, 512), 1)
