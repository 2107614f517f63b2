"""Which frames a latent frame holds: as many latent frames as the encoder makes, and every frame in one of them."""

import itertools

import pytest
import torch
from tiny import PIPELINES
from tiny_steps import FACTS

from diffpo.models import FAMILIES
from diffpo.models.encoders import Encoders
from diffpo.models.tuning import Full

CLIPS = [name for name in PIPELINES if FAMILIES[FACTS[name].family].most_frames != 1]


@pytest.mark.parametrize("name", CLIPS)
def test_a_latent_frame_for_each_that_the_encoder_makes(pipelines, name):
    encoders = Encoders(Full(path=str(pipelines(name))), "cpu")
    count = 2 * encoders.rule.step + 1
    side = 2 * encoders.multiple
    frames = 2 * torch.rand(3, count, side, side, generator=torch.Generator().manual_seed(0)) - 1
    held = encoders.latent_frames(count)
    assert len(held) == encoders.encode_media(frames)[0].shape[1] == 3
    assert list(itertools.chain(*held)) == list(range(count))
    assert len(encoders.latent_frames(1)) == 1


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_a_frame_changes_no_latent_frame_before_its_own(pipelines, name):
    """Causal VAEs: what a latent frame before shows does not depend on it. (Others normalise over several frames.)"""
    encoders = Encoders(Full(path=str(pipelines(name))), "cpu")
    count, side = 2 * encoders.rule.step + 1, 2 * encoders.multiple
    frames = 2 * torch.rand(3, count, side, side, generator=torch.Generator().manual_seed(0)) - 1
    before = encoders.encode_media(frames)[0]
    for own, held in enumerate(encoders.latent_frames(count)):
        changed = frames.clone()
        changed[:, held[0]] = -changed[:, held[0]]
        differs = (encoders.encode_media(changed)[0] - before).abs().amax((0, 2, 3)) > 1e-6
        assert not differs[:own].any() and differs[own]
