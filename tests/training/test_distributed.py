"""The update depends on the pairs alone: not on processes, micro-batches, or how parameters are sharded."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from runs import World, checkpoints, command, difference, launch, metrics, weights

pytestmark = pytest.mark.slow

CPU = {"ACCELERATE_USE_CPU": "true"}
FSDP2 = CPU | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "diffpo", "train")
DOUBLE = {"train.dtype": "float64", "train.steps": 5, "train.checkpoint_every": 2, "train.keep_last": 5}
SINGLE = {"train.dtype": "float32", "train.steps": 5}
FULL = {"model.name": "full", "train.learning_rate": 1e-4}
JUDGED = {"data.validation_fraction": 0.3, "train.eval_every": 5, "train.sample_every": 5}
JUDGED |= {"sample.prompts": ["thing 1", "thing 2", "thing 3"], "sample.batch": 1, "sample.steps": 1}
"""Held-out pairs and samples, which processes share, an odd number of each."""
CASES = {
    "dpo-full": DOUBLE | FULL,
    "dpo-lora": DOUBLE | {"train.ema": 0.9, "method.dense": "frame", "data.path": "labelled.jsonl"} | JUDGED,
    "float32": SINGLE,
}
"""`dpo-lora` judges by labels of which a third are ties: other numbers of terms for each process and micro-batch, and
some micro-batches without any."""
SHARDED = ("dpo-full", "dpo-lora", "float32")
WHOLE, MICRO, SPLIT = {"train.batch": 8}, {"train.batch": 1, "train.accumulate": 8}, {"train.batch": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("distributed"), "sd15", "sd3", rows=16)


@pytest.fixture(scope="module")
def done(world):
    """Every case with 8 pairs at once, 8 times with one, and 2 times with 4; some also sharded (`fsdp`).

    `dpo-full-2x4` is left to `test_torchrun_as_users_call_it`.
    """
    jobs = {}
    for case, changes in CASES.items():
        for how, more in {"8": WHOLE, "1x8": MICRO, "2x4": SPLIT, "fsdp": SPLIT}.items():
            if (how == "fsdp" and case not in SHARDED) or (case, how) == ("dpo-full", "2x4"):
                continue
            processes, env = (2 if more is SPLIT else 1), FSDP2 if how == "fsdp" else CPU
            behind = {"train.async_checkpoints": True} if how == "fsdp" else {}
            file = world.write(f"{case}-{how}", changes | more | behind)
            jobs[f"{case}-{how}"] = {"argv": ["train", str(file)], "processes": processes, "env": env}
    answers = launch(list(jobs.values()), world.folder / "jobs.json")
    for name, answer in zip(jobs, answers, strict=True):
        assert answer["code"] == 0, f"{name}: {answer['text']}"
    return dict(zip(jobs, answers, strict=True))


INVERTED = {"train.dtype": "float64", "train.steps": 3, "data.path": "labelled.jsonl"}
SMALL = {"method.inversion": {"steps": 4, "renoise": 1}}
BLOCKS = {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP": "BasicTransformerBlock"}
"""What is sharded as one piece is gathered by the first forward of an update; blocks of it, by each forward."""
STEPS = {
    "inpo": (INVERTED | FULL | {"method.name": "inpo"}, FSDP2 | BLOCKS, 1, 3),
    "smpo": (INVERTED | SMALL | {"method.name": "smpo"}, CPU, 4, 1),
    "inpo-sd3": (INVERTED | SMALL | {"method.name": "inpo"}, CPU, 1, 1),
    "draws": (INVERTED | FULL | {"data.reference_draws": 2, "train.steps": 9}, FSDP2 | BLOCKS, 2, 1),
}
"""Settings, how two processes share the work, how many pairs each takes at once, and how often in an update; one pair
each means two different t. In all micro-batches of an update they need different numbers of calls, too. With kept
errors (`draws`) the sharded reference is asked before the first update, and 9 updates are three epochs of two draws."""


@pytest.fixture(scope="module")
def inverted(world):
    """Each of `STEPS` with two processes and with one. A network that is sharded, or has buffers, waits in its forward
    for the other process: one that walked fewer steps would leave it waiting, here until its time is over."""
    jobs = {}
    for name, (changes, env, pairs, micro) in STEPS.items():
        family = "sd3" if "sd3" in name else "sd15"
        for how, processes in (("one", 1), ("two", 2)):
            cut = {"train.batch": 2 * pairs // processes, "train.accumulate": micro}
            file = world.write(f"{name}-{how}", changes | cut, family)
            job = {"argv": ["train", str(file)], "processes": processes, "env": env if how == "two" else CPU}
            jobs[f"{name}-{how}"] = job | {"seconds": 240}
    answers = launch(list(jobs.values()), world.folder / "inverted.json")
    for name, answer in zip(jobs, answers, strict=True):
        assert answer["code"] == 0, f"{name}: {answer['text']}"
    return dict(zip(jobs, answers, strict=True))


@pytest.mark.parametrize("name", STEPS)
def test_two_processes_invert_as_one(world, inverted, name):
    one, two = (world.folder / f"{name}-{how}" for how in ("one", "two"))
    assert difference(weights(two), weights(one)) < 1e-10
    assert [line["loss"] for line in metrics(two)] == pytest.approx([line["loss"] for line in metrics(one)], rel=1e-9)
    assert len({line["loss"] for line in metrics(one)}) == len(metrics(one)) >= 3


def test_the_inverting_network_really_is_sharded(inverted):
    policy = inverted["inpo-two"]["policy"]
    assert policy["shards"] == policy["parameters"] > 0


def from_checkpoint(world, source, name, step):
    """A copy of a run as it was after `step` updates, and the configuration to go on with 2 times 4 pairs."""
    shutil.copytree(world.folder / source, world.folder / name)
    run = world.folder / name
    shutil.rmtree(run / "final")
    for checkpoint in checkpoints(run):
        if checkpoint != f"step-{step:06d}":
            shutil.rmtree(run / "checkpoints" / checkpoint)
    return world.write(name, CASES["dpo-full"] | SPLIT)


def pairs_per_update(run):
    return yaml.safe_load((run / "config.yaml").read_text())["pairs per update"]


@pytest.mark.parametrize("case", [case for case in CASES if case != "float32"])
def test_eight_micro_batches_are_one_batch(world, done, case):
    a, b = (world.folder / f"{case}-{how}" for how in ("8", "1x8"))
    assert difference(weights(a), weights(b)) < 1e-10
    assert difference(weights(a), start(world, case)) > 1e-6  # something was learned
    assert_told_alike(b, a)


def assert_told_alike(run, other):
    """All that is logged but the clock is averaged over the same terms."""
    for line, expected in zip(metrics(run), metrics(other), strict=True):
        assert line == pytest.approx(expected, rel=1e-9, abs=1e-12)


def start(world, case):
    """Weights before the first update."""
    from diffpo.config.run import build
    from diffpo.training.train import train

    tree = world.tree(f"{case}-start", CASES[case] | WHOLE | {"train.steps": 1, "train.learning_rate": 0.0})
    return weights(train(build(tree)))


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("float32", "dpo-full")])
def test_two_processes_are_one(world, done, case):
    run = world.folder / f"{case}-2x4"
    assert pairs_per_update(run) == 8  # of which a process takes 4: there were two
    assert difference(weights(run), weights(world.folder / f"{case}-8")) < 1e-10
    assert_told_alike(run, world.folder / f"{case}-8")
    assert "eval/loss" in metrics(run)[-1]


@pytest.mark.parametrize("how", ["2x4", "fsdp"])
def test_processes_draw_the_grid_of_one(world, done, how):
    grids = [world.folder / f"dpo-lora-{name}" / "samples" / "step-000005.png" for name in ("8", how)]
    one, two = (np.asarray(Image.open(grid), np.int16) for grid in grids)
    assert np.abs(one - two).max() <= 1


def test_the_average_is_that_of_one_process(world, done):
    from safetensors.torch import load_file

    runs = (world.folder / f"dpo-lora-{how}" for how in ("8", "2x4"))
    a, b = (load_file(run / "checkpoints" / "step-000005" / "average.safetensors") for run in runs)
    assert difference(a, b) < 1e-10


@pytest.mark.parametrize("how", ["1x8", "2x4", "fsdp"])
def test_losses_in_single_precision(world, done, how):
    a, b = (metrics(world.folder / f"float32-{name}") for name in ("8", how))
    assert [line["loss"] for line in b] == pytest.approx([line["loss"] for line in a], rel=1e-4)
    assert len(a) == 5 and len({line["loss"] for line in a}) == 5


def test_torchrun_as_users_call_it(world, done):
    """`torchrun -m diffpo train CONFIG` goes on from a checkpoint that one process made."""
    file = from_checkpoint(world, "dpo-full-8", "dpo-full-2x4", 2)
    ended = command(*TORCHRUN, file, **CPU)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("next:") == 1  # one process speaks
    run = world.folder / "dpo-full-2x4"
    assert pairs_per_update(run) == 8
    assert difference(weights(run), weights(world.folder / "dpo-full-8")) < 1e-10
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("case", ["dpo-full", "dpo-lora"])
def test_sharded_parameters_learn_the_same(world, done, case):
    whole, sharded = world.folder / f"{case}-8", world.folder / f"{case}-fsdp"
    assert pairs_per_update(sharded) == 8
    assert difference(weights(sharded), weights(whole)) < 1e-10


def test_parameters_really_are_sharded(done):
    full, lora = done["dpo-full-fsdp"], done["dpo-lora-fsdp"]
    for network in (full["policy"], full["reference"], lora["policy"]):
        assert network["shards"] == network["parameters"] > 0
        assert 0.4 * network["whole"] < network["here"] < 0.6 * network["whole"]  # of two processes


def test_shards_go_on_from_one_process(world, done):
    file = from_checkpoint(world, "dpo-full-8", "continued", 2)
    (answer,) = launch([{"argv": ["train", str(file)], "processes": 2, "env": FSDP2}], world.folder / "continued.json")
    assert answer["code"] == 0, answer["text"]
    assert difference(weights(world.folder / "continued"), weights(world.folder / "dpo-full-8")) < 1e-10


def test_all_processes_end_at_an_error(world):
    """No process waits for another one that stopped; one of them says why."""
    file = world.write("broken", FULL | SPLIT | {"train.learning_rate": 10.0, "train.steps": 20})
    ended = command(*TORCHRUN, file, timeout=120, **CPU)
    assert ended.returncode != 0
    assert ended.stderr.count("diffpo: the loss of") == 1
    assert "exitcode  : 2" in ended.stderr
    lines = [json.loads(line) for line in (world.folder / "broken" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)) and 1 <= len(lines) < 20
    assert not (world.folder / "broken" / "final").exists()
