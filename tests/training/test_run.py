"""Who owns a run's folder, and what may change when a run continues."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import yaml

from diffpo.config.run import Config, build
from diffpo.errors import UserError
from diffpo.training.run import FREE, check_devices, claim_folder


@pytest.fixture
def claim(tmp_path):
    """Claim the folder with some settings changed."""

    def claimed(changes=None, processes=1, fresh=False, learned=True):
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
        alone = SimpleNamespace(num_processes=processes, is_main_process=True, wait_for_everyone=lambda: None)
        folder = claim_folder(build(tree), alone, fresh)
        if learned:
            (folder / "checkpoints" / "step-000001").mkdir(parents=True, exist_ok=True)
        return folder

    return claimed


def test_a_new_folder_gets_the_resolved_config(claim):
    tree = yaml.safe_load((claim() / "config.yaml").read_text())
    assert tree.pop("pairs per update") == 8
    assert build(tree).to_dict() == tree


@pytest.mark.parametrize(
    ("changes", "processes"),
    [
        ({"train.batch": 4, "train.accumulate": 2}, 1),
        ({"train.batch": 4}, 2),
        ({"train.batch": 1, "train.accumulate": 2}, 4),
        ({"train.steps": 9}, 1),
        ({"train.checkpoint_every": 1, "train.keep_last": 9, "train.log_every": 3, "train.trackers": ["wandb"]}, 1),
        ({"train.sample_every": 2, "sample.prompts": ["a"], "sample.steps": 3}, 1),
    ],
)
def test_what_may_change(claim, changes, processes):
    claim()
    claim(changes, processes)


@pytest.mark.parametrize(
    ("changes", "processes", "told"),
    [
        ({"train.batch": 4}, 1, "pairs per update: 8 there, 4 now"),
        ({}, 2, "pairs per update: 8 there, 16 now"),
        ({"train.learning_rate": 1.0}, 1, "train.learning_rate: 1e-05 there, 1.0 now"),
        ({"model.name": "full"}, 1, "model.name: 'lora' there, 'full' now"),
        ({"method.name": "sft"}, 1, "method.beta: 2000.0 there, None now"),
        ({"data.caption_dropout": 0.2}, 1, "data.caption_dropout: 0.1 there, 0.2 now"),
    ],
)
def test_what_may_not(claim, changes, processes, told):
    folder = claim()
    before = (folder / "config.yaml").read_text()
    with pytest.raises(UserError, match="holds a run with another config") as caught:
        claim(changes, processes)
    assert told in str(caught.value)
    assert (folder / "config.yaml").read_text() == before
    claim(changes, processes, fresh=True)


def test_a_start_that_learned_nothing_is_no_run(claim):
    folder = claim(learned=False)
    (folder / "samples").mkdir()
    claim({"train.learning_rate": 1.0})
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["learning_rate"] == 1.0
    assert not (folder / "samples").exists()


def test_what_was_learned_is_kept_although_its_checkpoints_are_gone(claim):
    folder = claim(learned=False)
    (folder / "metrics.jsonl").write_text('{"step": 1}')
    with pytest.raises(UserError, match="holds a run with another config"):
        claim({"train.learning_rate": 1.0})
    assert (folder / "metrics.jsonl").exists()


def test_fresh_clears_no_folder_of_the_users(claim):
    folder = claim(learned=False)
    (folder / "config.yaml").unlink()
    (folder / "samples").mkdir()
    with pytest.raises(UserError, match="no run of diffpo"):
        claim(fresh=True)
    assert (folder / "samples").exists()


def test_steps_may_not_shrink_below_what_is_done(claim):
    (claim() / "checkpoints" / "step-000003").mkdir()
    with pytest.raises(UserError, match=r"already done more than train\.steps=2 updates"):
        claim({"train.steps": 2})


def test_steps_may_not_grow_where_the_schedule_looks_at_them(claim):
    claim({"train.schedule": "linear"})
    with pytest.raises(UserError, match=r"train\.steps: 4 there, 9 now"):
        claim({"train.schedule": "linear", "train.steps": 9})


def test_every_free_setting_exists():
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
    for key in FREE:
        section, field = key.split(".")
        assert section in sections
        assert field in {f.name for f in dataclasses.fields(getattr(config, section))}, key


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
