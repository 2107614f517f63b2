"""The script that compares scorers with published numbers: it finds an error, and says where."""

import json
import shutil

import check_scorers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_clips import ARCHITECTURE, GOLDEN, HPS, golden, hps_state, write_pickscore

from diffpo.scorers import HPSv2


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    shutil.copytree(GOLDEN, folder, dirs_exist_ok=True)
    write_pickscore(folder / "pickscore")
    return folder


def test_the_golden_case_agrees(case, capsys):
    assert check_scorers.main([str(case)]) == 0
    said = capsys.readouterr().out
    assert "2 of 2 scorers agree" in said and said.count("bond") == 2


def test_a_vocabulary_that_lacks_is_made(capsys):
    assert check_scorers.main([str(GOLDEN)]) == 0
    assert "2 of 2 scorers agree" in capsys.readouterr().out


MORE = GOLDEN.parent / "scorers_more"


def test_every_other_scorer_agrees_with_its_official_program(capsys):
    """All images and prompts of ImageReward, MPS (two thresholds), HPSv3, both aesthetics; GenEval's decisions."""
    assert check_scorers.main([str(MORE)]) == 0
    said = capsys.readouterr().out
    assert "6 of 6 scorers agree" in said and "60 of 60 decisions are the same" in said
    assert said.count("allowed") == 9, "a file for each aesthetic and for HPSv3, two for ImageReward, four for MPS"


@pytest.mark.parametrize(
    ("scorer", "other", "official"),
    [("mps", "scores_exact_speeds", "scores"), ("hpsv3", "scores", "scores_rounded_speeds")],
)
def test_other_rotary_speeds_would_be_found(scorer, other, official):
    """Parity is no accident of easy cases."""
    wrong, right = (json.loads((MORE / scorer / f"{name}.json").read_text()) for name in (other, official))
    assert max(map(check_scorers.difference, wrong, right)) > 5 * check_scorers.TOLERANCE


def test_a_wrong_decision_is_found(tmp_path, capsys):
    cases = json.loads((MORE / "geneval" / "cases.json").read_text())
    cases[3]["correct"] ^= True
    (tmp_path / "geneval").mkdir()
    (tmp_path / "geneval" / "cases.json").write_text(json.dumps(cases))
    assert check_scorers.main([str(tmp_path)]) == 1
    assert "59 of 60 decisions are the same" in capsys.readouterr().out


def test_a_wrong_score_is_found(case, tmp_path, capsys):
    shutil.copytree(case, tmp_path, dirs_exist_ok=True)
    scores = json.loads((case / "hpsv2" / "scores.json").read_text())
    scores[4] *= 1.0003
    (tmp_path / "hpsv2" / "scores.json").write_text(json.dumps(scores))
    assert check_scorers.main([str(tmp_path)]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if "TOO LARGE" in line]
    assert len(wrong) == 1 and "bond" in wrong[0]


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def small(tmp_path):
    """The golden case with HPS alone, and the scores of every image with every prompt."""
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "pickscore")
    images, prompts, expected = golden("hpsv2")
    scorer = HPSv2(path=str(HPS), architecture=str(ARCHITECTURE), device="cpu")
    table = torch.stack([scorer.score([image] * len(prompts), prompts) for image in images])
    torch.testing.assert_close(table.diagonal(), expected, rtol=1e-4, atol=0)
    return tmp_path, prompts, table.tolist()


def test_every_image_with_every_prompt(small, capsys):
    folder, _, table = small
    write(folder, "hpsv2/scores.json", table)
    assert check_scorers.main([str(folder)]) == 0
    assert capsys.readouterr().out.count("bond") == 6
    write(folder, "hpsv2/scores.json", {"scores": [list(row) for row in zip(*table, strict=True)]})  # by columns
    assert check_scorers.main([str(folder)]) == 0
    table[2][5] *= -1
    write(folder, "hpsv2/scores.json", table)
    assert check_scorers.main([str(folder)]) == 1
    assert capsys.readouterr().out.count("TOO LARGE") == 1


def test_more_prompts_than_images(small):
    folder, prompts, table = small
    (folder / "images" / "5.png").unlink()
    write(folder, "prompts.json", {"prompts": prompts})
    write(folder, "hpsv2/scores.json", table[:5])
    assert check_scorers.main([str(folder)]) == 0
    write(folder, "hpsv2/scores.json", [row[0] for row in table[:5]])
    assert check_scorers.main([str(folder)]) == 2


def test_scores_by_name(small, capsys):
    folder, prompts, table = small
    own = {str(i): table[i][i] for i in range(6)}
    for scores, count in (
        (own, 6),
        ({f"{i}.png": score for i, score in own.items()}, 6),
        ({str(i): row for i, row in enumerate(table)}, 36),
        ({"3": {"4": table[3][4], prompts[0]: table[3][0]}}, 2),
        ([{"image": "images/2.png", "score": table[2][2]}, {"image": 1, "prompt": 4, "score": table[1][4]}], 2),
    ):
        write(folder, "hpsv2/scores.json", scores)
        assert check_scorers.main([str(folder)]) == 0, scores
        assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("      ")]) == count
    write(folder, "hpsv2/scores.json", own | {"1": own["1"] * 1.001})
    assert check_scorers.main([str(folder)]) == 1
    for scores in ({"7": 0.1}, [{"picture": 1}], {"0": "much"}, ["much"] * 6, [["much"]], [], 3):
        write(folder, "hpsv2/scores.json", scores)
        assert check_scorers.main([str(folder)]) == 2, scores


def test_other_names_of_weights_and_folders(small, tmp_path_factory, capsys):
    """As safetensors, with `module.` in front, without a wrapper; all in one folder, whose case is one of several."""
    folder, _, _ = small
    state = hps_state()
    save_file(state, folder / "hpsv2" / "a.safetensors")
    torch.save({f"module.{name}": x for name, x in state.items()}, folder / "hpsv2" / "b.pth")
    torch.save({"model": {f"module.{name}": x for name, x in state.items()}, "epoch": 3}, folder / "hpsv2" / "c.bin")
    (folder / "hpsv2" / "ViT-tiny.json").rename(folder / "hpsv2" / "other.json")
    (folder / "hpsv2").rename(folder / "HPSv2.1")
    parent = tmp_path_factory.mktemp("cases")
    shutil.copytree(folder, parent / "one")
    assert check_scorers.main([str(parent)]) == 0
    assert "4 of 4 scorers agree" in capsys.readouterr().out


def test_every_mode_of_images_is_scored(small, capsys):
    """What PIL makes RGB of them is what counts, as in the authors' code; the alpha channel is dropped, not blended."""
    folder, _, _ = small
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (30, 50, 4), dtype=np.uint8)
    colours = Image.fromarray(values[..., :3])
    deep = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    made = {"10.tif": colours.convert("CMYK"), "9.png": Image.fromarray(values), "2.gif": colours.convert("P")}
    made |= {"0.jpg": colours.convert("L"), "1.png": deep, "3.webp": colours, "4.png": colours.convert("1")}
    made |= {"5.png": colours.convert("LA"), "6.bmp": colours, "11.jpeg": colours.convert("CMYK")}
    for name, image in made.items():
        image.save(folder / "images" / name)
    images = check_scorers.read_images(folder)
    assert list(images) == ["0", "1", "2", "3", "4", "5", "6", "9", "10", "11"]
    assert {images[name].mode for name in ("1", "9", "10")} == {"I;16", "RGBA", "CMYK"}
    scorer = HPSv2(path=str(HPS), architecture=str(ARCHITECTURE), device="cpu")
    expected = scorer.score([image.convert("RGB") for image in images.values()], ["a"] * len(images)).tolist()
    assert expected[7] == pytest.approx(expected[6], rel=1e-5)  # the same colours, with and without alpha
    write(folder, "prompts.json", ["a"] * len(images))
    write(folder, "hpsv2/scores.json", expected)
    assert check_scorers.main([str(folder)]) == 0
    (folder / "images" / "12.png").write_bytes(b"no image")
    assert check_scorers.main([str(folder)]) == 2
    assert "12.png is no readable image" in capsys.readouterr().err


def test_what_is_no_case(tmp_path, capsys):
    assert check_scorers.main([str(tmp_path)]) == 2
    (tmp_path / "hpsv2").mkdir()
    assert check_scorers.main([str(tmp_path)]) == 2
    assert "should hold weights" in capsys.readouterr().err
    shutil.copytree(GOLDEN / "hpsv2", tmp_path / "hpsv2", dirs_exist_ok=True)
    assert check_scorers.main([str(tmp_path)]) == 2
    assert "images named 0.png" in capsys.readouterr().err
