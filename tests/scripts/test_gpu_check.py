"""What a person runs on a GPU machine: mistakes are named, the random folder is a model, the tables say it all."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path

import bench
import bench_sweep
import gpu_report
import pytest
import random_sd15
import torch
from runs import ROOT

from diffpo.config.run import load_config
from diffpo.models.low_rank import Adapted, fuse_adapters

SCRIPT = ROOT / "scripts" / "gpu_check.sh"


@pytest.mark.parametrize("arguments", [[], ["--out"], ["--out", "x", "--fast"]])
def test_mistakes_end_at_once(tmp_path, arguments):
    done = subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2 and "scripts/gpu_check.sh --out DIR" in done.stdout
    assert not any(tmp_path.iterdir())


def test_a_step_that_there_is_not_is_named(tmp_path):
    asked = ["--out", "x", "--steps", "bench,trian:20"]
    done = subprocess.run(["bash", SCRIPT, *asked], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2 and "there is no step trian" in done.stderr and not any(tmp_path.iterdir())


def rows_of(step):
    """The rows that a step measures on a GPU: its own function, with a `sweep` that prints them."""
    text = SCRIPT.read_text()
    function = text[text.index(f"\n{step}() {{") :]
    function = function[: function.index("\n}\n") + 3]
    script = f'sweep() {{ shift; printf "%s\\n" "$@"; }}\n{function}\n{step}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("step", gpu_report.SWEEPS)
def test_the_rows_of_every_step_can_be_read(step):
    """Each names a case and settings that there are, and attention kernels that torch has."""
    rows = [bench_sweep.parse_row(row) for row in rows_of(step)]
    assert len(rows) > 1 and all(row["case"].partition("@")[2] for row in rows), "of full size"
    for row in rows:
        options = bench_sweep.options_of(row, argparse.Namespace(device="cpu", mixed_precision="bf16"))
        assert options.cases == [row["case"]] and all(int(batch) > 0 for batch in row["batch"].split(","))
        assert all(name in bench_sweep.SDPA for name in row["kernels"].split("+") if name)


def test_a_smaller_batch_is_tried_where_memory_is_full_and_others_have_their_turn(tmp_path, monkeypatch, capsys):
    """Both are told; so is what takes too long, and what cannot be had, which alone is an error."""
    measure = bench_sweep.measure

    def as_on_a_full_card(row, *more):
        if row["batch"] == "64":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        if row["batch"] == "3":
            time.sleep(5)
        yield from measure(row, *more)

    monkeypatch.setattr(bench_sweep, "measure", as_on_a_full_card)
    rows = [
        "tiny-sd15 lora batch=3 limit=0.1",
        "tiny-sd15 full batch=64,2,1 check=1 timed=0",
        "tiny-sd15 lora batch=64",
    ]
    usual = ["--out", str(tmp_path / "bench.json"), "--device", "cpu", "--mixed-precision", "no"]
    assert bench_sweep.main([*usual, *rows]) == 0
    results = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert [(r["batch"], r["status"]) for r in results] == [("3", "late"), ("64", "OOM"), ("2", "ok"), ("64", "OOM")]
    assert results[2]["cosine"] == pytest.approx(1)
    capsys.readouterr()
    gpu_report.tables(tmp_path, tmp_path / "steps.txt")
    head, peak, late, full, fits, *_ = capsys.readouterr().out.splitlines()
    assert head == "bench:" and "TFLOP/s" in peak and "OverTime" in late
    assert full.startswith("  tiny-sd15 full batch=64: OOM") and "cosine 1.00000" in fits
    assert bench_sweep.main([*usual, "tiny-sd15 full batch=1 attention=telepathy"]) == 1


def test_plain_calls_take_the_place_of_fast_ones_for_a_while():
    """Of adapters that compute as one function, and of a method of a stack of transformers."""
    options, accelerator = bench.parse(["tiny-sd15", "--device", "cpu"]), bench.Accelerator(cpu=True)
    update = bench.Update(bench.CASES["tiny-sd15"], bench.make_tuning("lora"), "dpo", 2, options, accelerator)
    asked = []
    fuse_adapters(update.network)
    fused = [m for m in update.network.modules() if isinstance(vars(m).get("forward"), Adapted)]
    stack = next(m for m in update.network.modules() if type(m).__name__ == "Transformer2DModel")
    stack._operate_on_continuous_inputs = lambda x: (
        asked.append(x) or type(stack)._operate_on_continuous_inputs(stack, x)
    )
    plain, fast = (bench_sweep.gradient(update, fast=fast) for fast in (False, True))
    assert fused and all(isinstance(vars(m).get("forward"), Adapted) for m in fused)
    assert len(asked) == 2, "policy and reference, once"
    assert bench_sweep.cosine(plain, fast) == pytest.approx(1, abs=1e-6)


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
        "lane:",
        "  1 passed, 1 skipped, 1 failed in 6 s; the slowest is a, 2 s",
        "  a: {'graphs': 9}",
        "  failed  b: AssertionError: no",
        "  skipped c: no x",
        "lane: failed with exit code 1 after 6 s",
    ]
