"""Who owns a run's folder, and what may change when a run continues."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
import yaml
from runs import ROOT

from diffpo.config.run import Config, build
from diffpo.errors import UserError
from diffpo.training.run import CHANGEABLE, EFFECTIVE, check_devices, claim, note


@pytest.fixture
def claimed(tmp_path):
    """Claim the folder with some settings changed."""

    def made(changes=None, processes=1, fresh=False, learned=True):
        tree = {
            "model": {"name": "lora", "path": "owner/model"},
            "method": {"name": "dpo"},
            "data": {"name": "pairs", "path": "owner/pairs"},
            "train": {"steps": 4, "batch": 8, "output": str(tmp_path / "run")},
            "sample": {},
        }
        for key, value in (changes or {}).items():
            block, field = key.split(".")
            tree[block][field] = value
        config, folder = build(tree), tmp_path / "run"
        effective = config.train.batch * config.train.accumulate * processes
        claim(folder, config.to_dict() | {EFFECTIVE: effective}, fresh=fresh)
        if learned:
            note(folder, folder / "checkpoints" / "step-000001")
            (folder / "checkpoints" / "step-000001").mkdir(parents=True, exist_ok=True)
        return folder

    return made


def test_what_is_gone_is_struck_off_but_not_a_checkpoint_on_its_way(claimed):
    folder = claimed(learned=True)
    for name in ("samples/step-000002.png", "checkpoints/step-000002"):
        note(folder, folder / name)
    note(folder, folder / "samples" / "step-000003.png")
    wrote = json.loads((folder / "run.json").read_text())["wrote"]
    assert {"checkpoints/step-000001", "checkpoints/step-000002", "samples/step-000003.png"} <= set(wrote)
    assert "samples/step-000002.png" not in wrote


def history(folder):
    return json.loads((folder / "run.json").read_text())["history"]


def test_a_new_folder_gets_the_resolved_config(claimed):
    tree = yaml.safe_load((claimed() / "config.yaml").read_text())
    assert tree.pop("pairs per update") == 8
    assert build(tree).to_dict() == tree


MAY_CHANGE = [
    ({"train.batch": 4, "train.accumulate": 2}, 1),
    ({"train.batch": 4}, 2),
    ({"train.batch": 1, "train.accumulate": 2}, 4),
    ({"train.steps": 9}, 1),
    ({"train.checkpoint_every": 1, "train.keep_last": 9, "train.log_every": 3, "train.trackers": ["wandb"]}, 1),
    ({"train.checkpoint_minutes": 10}, 1),
    ({"train.sample_every": 2, "sample.prompts": ["a"], "sample.steps": 3}, 1),
    ({"train.learning_rate": 1.0}, 1),
    ({"train.schedule": "cosine", "train.warmup_steps": 2, "train.steps": 9}, 1),
    ({"train.mixed_precision": "bf16", "model.dtype": "bfloat16"}, 1),
    ({"data.cache_dir": "elsewhere"}, 1),
]


@pytest.mark.parametrize(("changes", "processes"), MAY_CHANGE)
def test_what_may_change_is_written_into_the_history(claimed, changes, processes):
    folder = claimed()
    assert history(folder) == []
    claimed()
    assert history(folder) == []
    claimed(changes, processes)
    (entry,) = history(folder)
    assert entry["update"] == 1 and entry["changed"].keys() == changes.keys()
    assert all(entry["changed"][key][1] == value for key, value in changes.items())
    claimed(changes, processes)
    assert len(history(folder)) == 1


def test_a_run_that_said_the_rank_of_a_new_adapter_goes_on_without(claimed):
    """16 was the default's name in the files of earlier runs."""
    folder = claimed({"model.rank": 16})
    claimed()
    assert history(folder) == []
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["rank"] == 16


@pytest.mark.parametrize(
    ("changes", "processes", "told"),
    [
        ({"train.batch": 4}, 1, "pairs per update: 8 there, 4 now"),
        ({}, 2, "pairs per update: 8 there, 16 now"),
        ({"train.seed": 1}, 1, "train.seed: 0 there, 1 now"),
        ({"train.ema": 0.9}, 1, "train.ema: 0.0 there, 0.9 now"),
        ({"model.name": "full"}, 1, "model.name: 'lora' there, 'full' now"),
        ({"method.name": "sft"}, 1, "method.beta: 2000.0 there, None now"),
        ({"data.caption_dropout": 0.2}, 1, "data.caption_dropout: 0.1 there, 0.2 now"),
    ],
)
def test_what_may_not(claimed, changes, processes, told):
    folder = claimed()
    before = (folder / "config.yaml").read_text()
    with pytest.raises(UserError, match="holds a run with another config") as caught:
        claimed(changes, processes)
    assert told in str(caught.value)
    assert "train.learning_rate" not in str(caught.value)
    assert (folder / "config.yaml").read_text() == before
    claimed(changes, processes, fresh=True)
    assert history(folder) == []


def test_settings_that_came_after_a_run_began_have_their_defaults_there(claimed):
    """A run of an earlier version goes on, unless the new setting is used."""
    file = claimed() / "config.yaml"
    tree = yaml.safe_load(file.read_text())
    assert tree["train"].pop("ema") == 0.0 and tree["data"].pop("caption_dropout") == 0.1
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=r"train\.ema: 0\.0 there, 0\.9 now"):
        claimed({"train.ema": 0.9})
    claimed()
    assert history(file.parent) == []


def test_a_start_that_learned_nothing_may_be_changed_and_nothing_is_removed(claimed):
    folder = claimed(learned=False)
    (folder / "samples").mkdir()
    (folder / "samples" / "mine.png").write_text("x")
    claimed({"train.seed": 3})
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["seed"] == 3
    assert (folder / "samples" / "mine.png").exists()


def test_what_was_learned_is_kept_although_its_checkpoints_are_gone(claimed):
    folder = claimed(learned=False)
    (folder / "metrics.jsonl").write_text('{"step": 1}')
    with pytest.raises(UserError, match="holds a run with another config"):
        claimed({"train.seed": 3})
    assert (folder / "metrics.jsonl").exists()


def test_steps_may_not_shrink_below_what_is_done(claimed):
    (claimed() / "checkpoints" / "step-000003").mkdir()
    with pytest.raises(UserError, match=r"already done more than train\.steps=2 updates: give at least train\.steps=3"):
        claimed({"train.steps": 2})
    claimed({"train.steps": 3})


def test_a_config_that_cannot_be_read_is_named(claimed):
    folder = claimed()
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"(?s)config\.yaml cannot be read .*--fresh"):
        claimed()
    claimed(fresh=True)


def test_every_setting_that_may_change_exists_and_is_documented():
    """A setting that was renamed would else be frozen without a word."""
    sections = {field.name: field for field in dataclasses.fields(Config)}
    config = build(
        {
            "model": {"name": "full", "path": "o/m"},
            "method": {"name": "dpo"},
            "data": {"name": "pairs", "path": "o/p"},
            "train": {"steps": 1},
        }
    )
    for key in CHANGEABLE:
        section, field = key.split(".")
        assert section in sections
        assert field in {f.name for f in dataclasses.fields(getattr(config, section))}, key
    text = (ROOT / "docs" / "training.md").read_text()
    listed = text.split("## What may change when a run goes on")[1].split("\n## ")[0]
    assert set(re.findall(r"`((?:train|sample|data|model)\.\w+)`", listed)) == CHANGEABLE


def test_half_precision_is_refused_on_a_cpu_alone():
    tree = {
        "model": {"name": "lora", "path": "o/m", "dtype": "float16"},
        "method": {"name": "dpo"},
        "data": {"name": "pairs", "path": "o/p"},
        "train": {"steps": 1, "mixed_precision": "fp16"},
    }
    config = build(tree)
    with pytest.raises(UserError, match=r"train\.mixed_precision=fp16 and model\.dtype=float16, but this machine"):
        check_devices(config, torch.device("cpu"))
    check_devices(config, torch.device("cuda"))
