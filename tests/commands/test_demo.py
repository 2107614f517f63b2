"""The demo: aligning the shapes world makes held-out images better by the judges' own measure."""

import json
from dataclasses import replace

import pytest

from diffpo.commands import demo_users
from diffpo.commands.demo import MOVING, SHAPES, run_demo
from diffpo.commands.demo_users import run_users_demo
from diffpo.config.run import load_config
from diffpo.media.prompts import load_prompts


@pytest.mark.slow
def test_the_demo_wins_on_held_out_prompts(tmp_path):
    less = {"prompts": 30, "overrides": ["train.steps=20", "train.eval_every=0", "data.limit=320"]}
    summary = run_demo(tmp_path / "demo", **less)
    assert summary == json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["judge"] == "shapes-utility" and summary["prompts"] == 30
    assert 0.5 < summary["ci_low"] <= summary["win_rate"] <= summary["ci_high"] <= 1
    _, _, most = summary["difference"]["shapes"]
    assert most >= 0, "what the captions ask for must not get lost"
    assert set(summary["base"]) == set(summary["tuned"]) == {"shapes", "shapes-utility", "pickscore"}
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "data:image/" in page and "dpo" in page

    finished = (tmp_path / "demo" / "metrics.jsonl").read_text()
    again = run_demo(tmp_path / "demo", **less)
    assert (tmp_path / "demo" / "metrics.jsonl").read_text() == finished, "a finished run must not learn more"
    assert again["win_rate"] == summary["win_rate"]


@pytest.mark.slow
def test_the_demo_of_clips_reports_motion_beside_quality(tmp_path):
    less = ["train.steps=2", "train.warmup_steps=1", "train.eval_every=0", "data.limit=32"]
    summary = run_demo(tmp_path / "demo", MOVING, prompts=4, overrides=less)
    assert summary == json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["judge"] == "moving" and summary["prompts"] == 4
    assert set(summary["difference"]) == {"moving", "moving-motion"}
    assert 1 < summary["base"]["moving-motion"] < 2  # pixels per frame
    assert 0.8 < summary["base"]["moving"] <= 1
    clips = sorted((tmp_path / "demo" / "media").glob("*/*.mp4"))
    assert len(clips) == 2 * 4 * len(MOVING.seeds)
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "motion (moving-motion) of densedpo, against base" in page


@pytest.mark.parametrize("world", [SHAPES, MOVING])
def test_a_world_judges_prompts_that_it_has_and_quality_first(world):
    assert len(load_prompts(f"{world.prompts}:{world.most}")) == world.most
    assert world.scorers[0].measures == "quality"
    config = load_config(world.config)
    assert config.sample.prompts.split(":")[1] == "validation" and world.prompts.endswith(":heldout")


@pytest.mark.slow
def test_the_demo_of_users_judges_people_whom_the_model_has_never_met(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_users, "PEOPLE", replace(demo_users.PEOPLE, draws=2, support=8))
    less = ("train.steps=2", "train.warmup_steps=1", "data.limit=64", "sample.steps=4")
    summary = run_users_demo(tmp_path / "demo", prompts=1, overrides=less)
    assert summary == json.loads((tmp_path / "demo" / "summary.json").read_text())
    compared = {(result["first"], result["second"]): result for result in summary["results"]}
    assert set(compared) == {("own", "base"), ("own", "others"), ("others", "base")}
    assert compared["own", "base"]["groups"]["unseen"]["n_users"] == 10
    assert summary["users told from their states"]["unseen"]["users"] == 10
    assert (tmp_path / "demo" / "report.html").is_file()
