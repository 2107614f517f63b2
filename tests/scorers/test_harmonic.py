"""The lambda-harmonic reward: by hand, its scaling, and how a configuration names its parts."""

import pytest
import torch
from PIL import Image

from diffpo.compare.in_loop import in_loop
from diffpo.config.blocks import to_plain
from diffpo.config.options import make_scorer
from diffpo.errors import UserError
from diffpo.scorers import LambdaHarmonic
from diffpo.scorers.base import ImageScorer

PAIR = "image={name: dino, references: dog},text={name: clip, without: sks}"


class Red(ImageScorer):
    """Scores an image by the red of its first pixel, in percent less 100."""

    name, about, scale, origin = "red", "how red it is", "", "this test"

    @property
    def _found(self):
        return {}

    def score(self, images, prompts):
        return torch.tensor([image.getpixel((0, 0))[0] / 100 - 1 for image in images])


class Length(Red):
    """Scores an image by the length of its prompt."""

    name = "length"

    def score(self, images, prompts):
        return torch.tensor([len(prompt) / 10 for prompt in prompts])


def reward(**options):
    return LambdaHarmonic(image=Red(), text=Length(), **options)


def score(scorer, red=160, prompt="eight by"):
    return scorer.score([Image.new("RGB", (2, 2), (red, 0, 0))], [prompt]).item()


def test_by_hand():
    """I = (0.6 + 1) / 2 = 0.8 and T = (0.8 + 1) / 2 = 0.9; 1 / (0.3 / 0.8 + 0.7 / 0.9) = 0.867470."""
    assert score(reward(image_weight=0.3)) == pytest.approx(0.8674699, rel=1e-6)
    assert score(reward(image_weight=1)) == pytest.approx(0.8)
    assert score(reward(image_weight=0)) == pytest.approx(0.9)
    assert score(reward(), red=0) == pytest.approx(2e-8, rel=1e-3)  # I is 0: so is all of it


def test_what_counts_as_zero_and_as_one():
    """I = (0.6 - 0.4) / 0.5 = 0.4, T = 1 since 0.8 lies beyond 0.5: 1 / (0.5 / 0.4 + 0.5) = 0.571429."""
    scaled = reward(image_range=(0.4, 0.9), text_range=(0.0, 0.5))
    assert score(scaled) == pytest.approx(0.5714286, rel=1e-6)
    assert score(scaled, red=120) == pytest.approx(2e-8, rel=1e-3)
    with pytest.raises(UserError, match="text_range goes from 1 to 1; the first must be the smaller one"):
        reward(text_range=(1.0, 1.0))


def test_a_part_of_no_weight_is_not_asked():
    class Asked(Red):
        def score(self, images, prompts):
            raise AssertionError("asked")

    assert score(LambdaHarmonic(image=Asked(), text=Length(), image_weight=0)) == pytest.approx(0.9)
    assert score(LambdaHarmonic(image=Red(), text=Asked(), image_weight=1)) == pytest.approx(0.8)


def test_parts_are_blocks_and_travel():
    made = make_scorer(f"lambda-harmonic,{PAIR},image_weight=0.3,image_range=[0.2, 0.8]")
    assert (made.image.name, made.text.without, made.image_range) == ("dino", "sks", (0.2, 0.8))
    told = to_plain(made)
    assert told["image"] == {"name": "dino"} | to_plain(made.image)
    assert make_scorer({"name": "lambda-harmonic"} | told) == made
    for spec, words in (
        ("lambda-harmonic", r"image\.name: is missing"),
        (f"lambda-harmonic,{PAIR.replace('dino', 'dine')}", r"image\.name: unknown scorer 'dine'.*Did you mean dino"),
        ("lambda-harmonic,image={name: dino},text=clip", r"image\.references: is missing"),
    ):
        with pytest.raises(UserError, match=words):
            make_scorer(spec)


def test_every_part_decides_the_score():
    same = reward().provenance
    assert same == reward().provenance
    others = [{"image_weight": 0.4}, {"image_range": (0.0, 1.0)}, {"text_range": (0.0, 1.0)}, {"frames": 2}]
    changed = [reward(**other).provenance for other in others]
    changed.append(LambdaHarmonic(image=Length(), text=Length()).provenance)
    assert all(other != same for other in changed)


def test_its_parts_had_a_hand_too(tmp_path):
    """Who selects by the reward selects by both of its parts."""
    (tmp_path / "run").mkdir()
    block = f"{{name: lambda-harmonic, {PAIR.replace('=', ': ').replace('},', '}, ')}}}"
    (tmp_path / "run" / "config.yaml").write_text(f"train: {{select: {{scorer: {block}}}}}\n")
    said = in_loop([{"label": "mine", "tuned": str(tmp_path / "run")}], ["mine"], [])
    assert set(said) == {"lambda-harmonic", "dino", "clip"} and "selected the update of mine" in said["dino"]
