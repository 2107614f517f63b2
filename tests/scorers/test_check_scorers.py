"""The script that compares scorers with published numbers: it finds an error, and says where."""

import json
import shutil

import check_scorers
import pytest
import torch
from tiny_clips import ARCHITECTURE, GOLDEN, HPS, golden, write_pickscore

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


def test_a_wrong_score_is_found(case, tmp_path, capsys):
    shutil.copytree(case, tmp_path, dirs_exist_ok=True)
    scores = json.loads((case / "hpsv2" / "scores.json").read_text())
    scores[4] *= 1.0003
    (tmp_path / "hpsv2" / "scores.json").write_text(json.dumps(scores))
    assert check_scorers.main([str(tmp_path)]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if "TOO LARGE" in line]
    assert len(wrong) == 1 and "bond" in wrong[0]


def test_every_image_with_every_prompt(case, tmp_path, capsys):
    """More prompts than images: a table of images by prompts, whose diagonal is official."""
    shutil.copytree(case, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "pickscore")
    images, prompts, expected = golden("hpsv2")
    scorer = HPSv2(path=str(HPS), architecture=str(ARCHITECTURE), device="cpu")
    table = torch.stack([scorer.score([image] * len(prompts), prompts) for image in images])
    torch.testing.assert_close(table.diagonal(), expected, rtol=1e-4, atol=0)
    (tmp_path / "hpsv2" / "scores.json").write_text(json.dumps(table.tolist()))
    assert check_scorers.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("bond") == 6
    (tmp_path / "hpsv2" / "scores.json").write_text(json.dumps(table.T.tolist()))
    assert check_scorers.main([str(tmp_path)]) == 1


def test_what_is_no_case(tmp_path, capsys):
    assert check_scorers.main([str(tmp_path)]) == 2
    (tmp_path / "hpsv2").mkdir()
    assert check_scorers.main([str(tmp_path)]) == 2
    assert "images named 0.png" in capsys.readouterr().err
