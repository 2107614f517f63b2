"""The subject world: its prompts, its four pictures, and the two measures of an image."""

import numpy as np
import pytest
from build_subject import measure_round_trip
from PIL import Image

from diffpo.media.prompts import load_prompts
from diffpo.scorers import SCORERS
from diffpo.worlds.assets import asset_path
from diffpo.worlds.shapes import scenes as shapes
from diffpo.worlds.shapes.render import render
from diffpo.worlds.shapes.scenes import ObjectSpec, Placement, Scene, SceneSpec
from diffpo.worlds.subject.pictures import CAPTION, draw_pictures, pictures
from diffpo.worlds.subject.scenes import SPLITS, SubjectSpec, parse_caption, split_captions
from diffpo.worlds.subject.verify import REACHABLE, judge, prompt_fidelity, see, subject_fidelity

GREEN = ObjectSpec("green", "circle")


def square(color: str, relation: str = "left of", background: str = "white") -> np.ndarray:
    """A square of one colour in the place of the subject."""
    spec = SceneSpec(ObjectSpec(color, "square"), GREEN, relation, background)
    first, second = (Placement(x, 32, 12, 0.9, 0.9) for x in ((19, 47) if relation == "left of" else (47, 19)))
    return render(Scene(spec, first, second, shapes.BACKGROUNDS[background]))


def test_the_prompts_are_those_of_the_shapes_world_and_share_no_picture_between_splits():
    captions = {split: split_captions(split) for split in SPLITS}
    assert {split: len(some) for split, some in captions.items()} == {"train": 290, "validation": 38, "heldout": 56}
    for split, some in captions.items():
        assert all(shapes.split_of(caption.replace("a h square", "a red square")) == split for caption in some)
    assert load_prompts("subject:heldout:5").prompts == load_prompts("subject:heldout:5").prompts
    assert set(load_prompts("subject:validation").prompts) == set(captions["validation"])


def test_a_prompt_says_how_the_subject_stands_to_the_other_object():
    assert parse_caption(CAPTION) == SubjectSpec(GREEN, "left of", "white")
    assert parse_caption("A green circle left of a h square on a gray background.").relation == "right of"
    for caption, reason in (
        ("a red square left of a green circle on a white background", "does not name the subject"),
        ("a h square left of a h square on a white background", "does not name the subject"),
        ("a h square on the moon", "not a caption of the shapes world"),
    ):
        with pytest.raises(ValueError, match=reason):
            parse_caption(caption)


def test_the_pictures_show_the_subject_and_their_caption():
    for picture in pictures():
        assert subject_fidelity(picture) == 1 and prompt_fidelity(picture, CAPTION) == 1
    shipped = sorted(asset_path("subject/references").iterdir())
    assert [np.asarray(Image.open(path)).tolist() for path in shipped] == [x.tolist() for x in draw_pictures()]
    assert sum(path.stat().st_size for path in asset_path("subject").rglob("*") if path.is_file()) < 20_000


def test_a_round_trip_through_the_vae_leaves_what_is_stated():
    assert measure_round_trip() == pytest.approx(REACHABLE, abs=0.01)


def test_fidelity_falls_with_every_half_that_is_wrong():
    assert subject_fidelity(square("red")) == pytest.approx(1 / 3 / REACHABLE, abs=0.03)
    assert subject_fidelity(square("yellow")) == pytest.approx(1 / 3 / REACHABLE, abs=0.03)
    assert subject_fidelity(square("blue")) == 0
    assert subject_fidelity(draw_pictures()[0][:, ::-1].copy()) < 0.1  # its halves exchanged
    assert subject_fidelity(np.full((64, 64, 3), 240, np.uint8)) == 0


def test_the_prompt_counts_everything_but_the_colours_of_the_subject():
    assert prompt_fidelity(square("red"), CAPTION) == prompt_fidelity(square("purple"), CAPTION) == 1
    wrong = judge(see(square("red", "right of", "black")), parse_caption(CAPTION))
    assert [name for name, right in wrong._asdict().items() if not right] == ["relation", "background"]
    other = judge(see(square("red")), parse_caption("a h square left of a blue cross on a white background"))
    assert [name for name, right in other._asdict().items() if not right] == ["color", "shape"]


def test_both_measures_are_scorers_that_refuse_other_prompts():
    scorers = [SCORERS[name]() for name in ("subject", "subject-prompt")]
    assert [scorer.score(pictures(), [CAPTION] * 4).tolist() for scorer in scorers] == [[1, 1, 1, 1]] * 2
    with pytest.raises(Exception, match="scorer subject-prompt judges images of the subject world only"):
        scorers[1].score(pictures()[:1], ["a dog"])
