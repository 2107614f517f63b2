"""Whole runs on a GPU: going on is bit for bit the same, and two processes share a card where NCCL lets them."""

from __future__ import annotations

import os
import subprocess

import pytest
from cards import needs_card
from runs import assert_same, command, contents, difference, forget_accelerator, metrics, weights

pytestmark = pytest.mark.gpu
RUN = {"train.mixed_precision": "bf16", "train.checkpoint_every": 2, "train.ema": 0.9, "train.steps": 4}


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(("family", "tuning"), [("sd15", "full"), ("sd15", "lora"), ("sd3", "lora")])
def test_going_on_is_bit_for_bit_the_same(world, family, tuning):
    """With torch's deterministic kernels: others may add in another order each time, as torch's documents say."""
    settings = RUN | {"model.name": tuning, "train.learning_rate": 1e-4}
    straight, stopped = (f"{family}-{tuning}-{how}" for how in ("straight", "stopped"))
    for name, steps in ((straight, 4), (stopped, 2), (stopped, 4)):
        forget_accelerator()
        world.train(name, settings | {"train.steps": steps}, family)
    assert_same(contents(world.folder / straight), contents(world.folder / stopped))


def test_the_same_run_twice_as_torch_comes(world, record_property):
    """How far two runs of the same command come apart where nothing is said of determinism; told in the report."""
    for name in ("once", "twice"):
        forget_accelerator()
        world.train(name, RUN | {"model.name": "full", "train.learning_rate": 1e-4})
    apart = difference(weights(world.folder / "once"), weights(world.folder / "twice"))
    record_property("difference", apart)
    assert apart < 1e-3


@needs_card
def test_memory_and_pace_are_logged(world):
    run = world.train("logged", RUN)
    for line in metrics(run, times=True):
        assert line["time/peak_memory_gib"] > 0 and line["time/pairs_per_second"] > 0


ON_THE_FIRST_CARD = """
import os, runpy, sys
os.environ["LOCAL_RANK"] = "0"  # accelerate takes the card of that number
sys.argv = ["diffpo", *sys.argv[1:]]
runpy.run_module("diffpo", run_name="__main__", alter_sys=True)
"""
REFUSED = ("Duplicate GPU detected", "ncclInvalidUsage", "invalid usage")


@needs_card
def test_two_processes_on_one_card(world, tmp_path):
    """NCCL takes each card once, by its documents: then its words are the reason to skip."""
    script = tmp_path / "first_card.py"
    script.write_text(ON_THE_FIRST_CARD)
    cut = {"train.steps": 2, "train.learning_rate": 1e-3}
    whole = world.train("one-process", cut | {"train.batch": 4})
    file = world.write("two-processes", cut | {"train.batch": 2})
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    env = {"NCCL_DEBUG": "WARN", "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    try:
        done = command(*launch, script, "train", file, timeout=60, **env)
    except subprocess.TimeoutExpired:
        pytest.skip("NCCL with two processes on one card: no answer within 60 s")
    said = done.stdout + done.stderr
    if done.returncode and any(words in said for words in REFUSED):
        line = next(line for line in said.splitlines() if any(words in line for words in REFUSED))
        pytest.skip(f"NCCL with two processes on one card: {line.strip()[-200:]}")
    assert done.returncode == 0, said[-3000:]
    assert difference(weights(world.folder / "two-processes"), weights(whole)) < 1e-4
