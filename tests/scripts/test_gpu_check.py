"""What a person runs on a GPU machine: mistakes are named, the random folder is a model, the tables say it all."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import gpu_report
import pytest
import random_sd15
import torch
from runs import ROOT

from diffpo.config.run import load_config

SCRIPT = ROOT / "scripts" / "gpu_check.sh"


@pytest.mark.parametrize("arguments", [[], ["--out"], ["--out", "x", "--fast"]])
def test_mistakes_end_at_once(tmp_path, arguments):
    done = subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2 and "scripts/gpu_check.sh --out DIR" in done.stdout
    assert not any(tmp_path.iterdir())


def test_the_random_folder_is_a_model_with_pairs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["random_sd15.py", str(tmp_path), "--tiny", "--pairs", "3", "--device", "cpu"])
    random_sd15.main()
    assert "diffpo train" in capsys.readouterr().out
    config = load_config(tmp_path / "train.yaml", ["train.mixed_precision=no", "model.dtype=float32"])
    base = config.model.find()
    assert base.family is not None and base.config("unet")["cross_attention_dim"] == 24
    assert len(Path(config.data.path).read_text().splitlines()) == 3


def test_full_size_is_that_of_stable_diffusion_1_5():
    """By the number of parameters, counted without memory."""
    with torch.device("meta"):
        pipeline = random_sd15.make_pipeline(False, "meta", torch.bfloat16)
    parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder")}
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert sizes == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}


def test_tables_say_what_failed_and_why_something_was_skipped(tmp_path, capsys):
    def result(name, outcome, reason="", **told):
        return {"test": name, "outcome": outcome, "seconds": 2.0, "reason": reason, "told": told}

    wrong = result("b", "failed", "E\nAssertionError: no")
    lane = [result("a", "passed", graphs=9), wrong, result("c", "skipped", "no x")]
    (tmp_path / "lane.json").write_text(json.dumps(lane))
    (tmp_path / "steps.txt").write_text("lane: failed with exit code 1 after 6 s\n")
    assert gpu_report.tables(tmp_path, tmp_path / "steps.txt") == 0
    assert capsys.readouterr().out.splitlines() == [
        "GPU lane: 1 passed, 1 skipped, 1 failed in 6 s; the slowest is a, 2 s",
        "  a: {'graphs': 9}",
        "  failed  b: AssertionError: no",
        "  skipped c: no x",
        "lane: failed with exit code 1 after 6 s",
    ]
