"""The moving world's judges as scorers of clips."""

from dataclasses import replace

import pytest
import torch
from moving_builder.sampling import sample_clips
from PIL import Image

from diffpo.errors import UserError
from diffpo.media.frames import Clip
from diffpo.scorers.worlds import MovingMotion, MovingVerifier
from diffpo.worlds.moving.render import render
from diffpo.worlds.moving.scenes import parse_caption, sample_prompts


@pytest.fixture(scope="module")
def truth():
    """Four clips drawn as their captions say, the first one as they are and the others at half their speed."""
    prompts = sample_prompts("heldout", 4)
    clips = sample_clips([parse_caption(p) for p in prompts], torch.Generator().manual_seed(0))
    clips = [replace(clip, speed=clip.speed / (1 + (i > 0))) for i, clip in enumerate(clips)]
    return [Clip(tuple(map(Image.fromarray, render(clip)))) for clip in clips], clips, prompts


def test_clips_are_judged_as_wholes(truth):
    media, clips, prompts = truth
    scores = MovingVerifier().judge(media, prompts)
    assert scores.dtype == torch.float32 and scores[0] == 1
    assert (MovingVerifier().judge(media, prompts[1:] + prompts[:1]) < 1).all()
    speeds = torch.tensor([clip.speed for clip in clips])
    torch.testing.assert_close(MovingMotion().judge(media, prompts), speeds, atol=0.04, rtol=0)


def test_motion_is_shown_beside_quality(truth):
    assert (MovingVerifier().measures, MovingMotion().measures) == ("quality", "motion")
    assert MovingVerifier().provenance["code"] == MovingMotion().provenance["code"]


@pytest.mark.parametrize("scorer", [MovingVerifier(), MovingMotion()])
def test_what_is_not_of_this_world(scorer, truth):
    media, _, prompts = truth
    with pytest.raises(UserError, match=r"moving world only.*expected 9 RGB frames"):
        scorer.score([Image.new("RGB", (32, 32))], prompts[:1])
    with pytest.raises(UserError, match=r"moving world only.*expected 9 RGB frames"):
        scorer.judge([Clip(media[0].frames[:5])], prompts[:1])
