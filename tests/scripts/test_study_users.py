"""The study of the users world: who judges its images, and how several seeds are counted."""

import json

import numpy as np
import pytest
import study_users as study
import study_users_report as report
from PIL import Image

from diffpo.compare.users import user_win_rate
from diffpo.worlds.shapes.render import render_batch, to_uint8
from diffpo.worlds.shapes.scenes import Placement, Scene, parse_caption
from diffpo.worlds.users.people import people

CAPTION = "a red circle left of a blue square on a {} background"


@pytest.fixture
def made(tmp_path):
    """Two seeds: `own` pictures are large, those of `base` small; in the second seed it is turned for one person."""
    order = sorted((person for person in people().values() if person.seen), key=lambda person: person.favourite[0])
    small, large = order[0].name, order[-1].name
    for seed in range(2):
        said = []
        for number, name in enumerate((small, large)):
            for shade in ("white", "black"):
                said.append({"file": f"{name}-{shade}.png", "user": name, "prompt": CAPTION.format(shade)})
                sizes = (13, 7) if seed == 0 or number == 0 else (7, 13)
                for kind, size in zip(("own", "base"), sizes, strict=True):
                    draw(tmp_path / str(seed) / kind / said[-1]["file"], said[-1]["prompt"], size)
        (tmp_path / str(seed) / study.SITTINGS).write_text(json.dumps(said))
    return tmp_path, small, large


def draw(file, prompt, size):
    sides = (Placement(x, 32, size, 0.72, 0.9) for x in (17, 47))
    scene = Scene(parse_caption(prompt), *sides, background_level=0.96 if "white" in prompt else 0.04)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(to_uint8(render_batch([scene]))[0])).save(file)
    file.with_suffix(".txt").write_text(prompt)


def test_people_judge_the_images_that_were_made_for_them(made):
    folder, small, large = made
    shares = {(v.user, v.share) for v in study.judge(folder / "0", "own", "base")}
    assert shares == {(small, 0.0), (large, 1.0)}
    assert {(v.user, v.share) for v in study.judge(folder / "1", "own", "base")} == {(small, 0.0), (large, 0.0)}


def test_what_seeds_make_for_the_same_person_and_prompt_is_one_verdict(made):
    folder, small, large = made
    once = user_win_rate([0, 0, 0.5, 0.5], ["white", "black"] * 2, [small, small, large, large]).macro
    rates = study.rates([folder / "0", folder / "1"], [("own", "base")])
    assert rates["own, base"] == [0.25, *(pytest.approx(x, abs=1e-4) for x in (once.ci_low, once.ci_high))]


def test_a_table_has_a_row_per_comparison_and_a_column_per_seed():
    cell = [0.7, 0.61, 0.79]
    rates = dict.fromkeys(report.COMPARED, cell)
    lines = report.table({"unseen": dict.fromkeys(["all", "0", "1", "2"], rates), "seen": rates}).splitlines()
    assert len(lines) == 2 + len(report.COMPARED) and {line.count("|") for line in lines} == {7}
    assert "| 0.700 [0.610, 0.790] |" in lines[2]
