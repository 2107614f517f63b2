"""The shapes world's judges as scorers."""

import pytest
import torch
from PIL import Image
from shapes_builder.sampling import sample_scenes

from diffpo.errors import UserError
from diffpo.scorers import ShapesUtility, ShapesVerifier
from diffpo.worlds.shapes.annotators import ANNOTATORS, utility
from diffpo.worlds.shapes.render import render
from diffpo.worlds.shapes.scenes import parse_caption, sample_prompts


@pytest.fixture(scope="module")
def truth():
    """Four scenes drawn as their captions say."""
    prompts = sample_prompts("heldout", 4)
    scenes = sample_scenes([parse_caption(p) for p in prompts], torch.Generator().manual_seed(0))
    return [Image.fromarray(render(scene)) for scene in scenes], prompts


def test_the_verifier_gives_truth_full_marks(truth):
    images, prompts = truth
    assert ShapesVerifier().score(images, prompts).tolist() == [1.0] * 4
    wrong = ShapesVerifier().score(images, prompts[1:] + prompts[:1])
    assert wrong.dtype == torch.float32 and (wrong < 1).all()


def test_utility_is_the_judges_or_one_annotators(truth):
    images, prompts = truth
    expected = [utility(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    torch.testing.assert_close(ShapesUtility().score(images, prompts), torch.tensor(expected))
    each = torch.stack([ShapesUtility(annotator=name).score(images, prompts) for name in ANNOTATORS])
    torch.testing.assert_close(each.mean(0), torch.tensor(expected))


def test_provenance_tells_judges_apart():
    assert ShapesUtility().provenance != ShapesUtility(annotator="ada").provenance
    assert "No humans" in ShapesUtility().provenance["about"]


@pytest.mark.parametrize("scorer", [ShapesVerifier(), ShapesUtility()])
def test_what_is_not_of_this_world(scorer, truth):
    images, prompts = truth
    with pytest.raises(UserError, match=r"shapes world only.*not a caption"):
        scorer.score(images[:1], ["a photo of a cat"])
    with pytest.raises(UserError, match=r"shapes world only.*64x64"):
        scorer.score([Image.new("RGB", (32, 32))], prompts[:1])
    with pytest.raises(UserError, match="zoe"):
        ShapesUtility(annotator="zoe").score(images[:1], prompts[:1])
