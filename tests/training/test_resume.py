"""A run killed with SIGKILL and started again by the same command ends as one that was not killed, bit for bit.

The kills land in known places (`launch.PLACES`): in the middle of a shard's encoding, between a gradient and its
update, in the middle of a checkpoint's file (also while updates go on), between a checkpoint's rename and the removal
of old ones, and when the export is written but not yet renamed.
"""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
import torch
from runs import World, assert_same, checkpoints, command, contents, launch, metrics
from torch._dynamo.utils import counters

from diffpo.errors import UserError

ROWS = 200  # some 150 to train on: two shards, of 128 rows at most
RUN = {
    "model.name": "full",
    "data.validation_fraction": 0.2,
    "train.steps": 6,
    "train.batch": 2,
    "train.accumulate": 2,
    "train.ema": 0.9,
    "train.checkpoint_every": 2,
    "train.eval_every": 3,
    "train.eval_pairs": 6,
    "train.sample_every": 3,
    "sample.prompts": ["thing 1"],
}
KILLED = ("encoding", "step", "checkpoint", "background", "pruning", "export")
UPDATES = {"encoding": 0, "step": 3, "checkpoint": 4, "background": 5, "pruning": 6, "export": 6}
"""Lines of `metrics.jsonl` at the kill."""
HELD = {
    "encoding": None,
    "step": ["step-000002"],
    "checkpoint": [".step-000004.KEY.unfinished", "step-000002"],
    "background": [".step-000004.KEY.unfinished", "step-000002"],
    "pruning": [".step-000002.unfinished", "step-000004", "step-000006"],
    "export": ["step-000004", "step-000006"],
}
"""What lies in `checkpoints/` at the kill."""


def shards(cache: Path) -> dict[str, tuple[int, bytes]]:
    return {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in sorted(cache.rglob("*.arrow"))}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("resume"), rows=ROWS)


@pytest.fixture(scope="module")
def after_kill(world):
    """The runs as the kill left them: for each, lines of metrics, names of checkpoints, shards, the answer."""
    whole = world.write("whole", RUN | {"data.cache_dir": str(world.folder / "cache-whole")})
    jobs = [{"argv": ["train", str(whole)]}]
    for place in KILLED:
        cache = world.folder / ("cache-encoding" if place == "encoding" else "cache-whole")
        behind = {"train.async_checkpoints": True} if place == "background" else {}
        file = world.write(place, RUN | behind | {"data.cache_dir": str(cache)})
        jobs.append({"argv": ["train", str(file)], "kill": place})
    done = launch(jobs, world.folder / "kill.json")
    assert done[0]["code"] == 0, done[0]["text"]
    seen = {}
    for place, answer in zip(KILLED, done[1:], strict=True):
        run = world.folder / place
        lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
        names = None
        if (run / "checkpoints").exists():
            names = [re.sub(r"\.[0-9a-f]{8}\.unfinished", ".KEY.unfinished", name) for name in checkpoints(run)]
        seen[place] = {"code": answer["code"], "lines": len(lines), "names": names, "final": (run / "final").exists()}
    seen["encoding"]["shards"] = shards(world.folder / "cache-encoding")
    return seen


@pytest.fixture(scope="module")
def resumed(world, after_kill):
    """The same commands again, unchanged; `step` in a process as a user starts it."""
    jobs = [{"argv": ["train", str(world.folder / f"{place}.yaml")]} for place in KILLED if place != "step"]
    done = launch(jobs, world.folder / "again.json")
    assert [job["code"] for job in done] == [0] * len(jobs), [job["text"] for job in done]
    plain = command("-m", "diffpo", "train", world.folder / "step.yaml")
    assert plain.returncode == 0, plain.stderr


@pytest.mark.slow
@pytest.mark.parametrize("place", KILLED)
def test_the_kill_lands_where_it_should(after_kill, place):
    seen = after_kill[place]
    assert seen["code"] == -signal.SIGKILL
    assert seen["lines"] == UPDATES[place]
    assert seen["names"] == HELD[place]
    assert not seen["final"]


@pytest.mark.slow
@pytest.mark.parametrize("place", KILLED)
def test_ends_as_if_nothing_had_happened(world, resumed, place):
    whole, again = contents(world.folder / "whole"), contents(world.folder / place)
    kinds = ("weights", "optimizer", "average")
    assert {f"checkpoints/step-000006/{kind}.safetensors" for kind in kinds} <= whole.keys()
    assert "final/unet/diffusion_pytorch_model.safetensors" in whole
    assert [line["step"] for line in whole["metrics"]] == [1, 2, 3, 4, 5, 6]
    assert {"samples/step-000003.png", "samples/step-000006.png"} <= whole.keys()
    assert_same(whole, {name: value for name, value in again.items() if "unfinished" not in name})


@pytest.mark.slow
def test_encoding_goes_on_where_it_was_killed(world, after_kill, resumed):
    killed, now = after_kill["encoding"]["shards"], shards(world.folder / "cache-encoding")
    whole = shards(world.folder / "cache-whole")
    assert len(killed) == 1  # of the images' first 128 rows: encoded once, not again
    assert killed.items() <= now.items()
    assert len(now) > 2
    assert sorted(content for _, content in now.values()) == sorted(content for _, content in whole.values())
    assert not [f for f in (world.folder / "cache-encoding").rglob(".*") if f.is_file()]


@pytest.mark.slow
def test_a_finished_run_started_again_changes_nothing(world, resumed):
    before = contents(world.folder / "whole")
    (done,) = launch([{"argv": ["train", str(world.folder / "whole.yaml")]}], world.folder / "finished.json")
    assert done["code"] == 0, done["text"]
    assert_same(before, contents(world.folder / "whole"))


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "adamw8bit"])
def test_a_lora_resumes_with_every_optimizer(tmp_path, optimizer):
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    world = World.make(tmp_path)
    settings = {"train.optimizer": optimizer, "train.ema": 0.9, "train.checkpoint_every": 2, "model.rank": 4}
    world.train("straight", settings | {"train.steps": 4})
    world.train("stopped", settings | {"train.steps": 2})
    world.train("stopped", settings | {"train.steps": 4})
    assert_same(contents(tmp_path / "straight"), contents(tmp_path / "stopped"))


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_weights_that_lie_otherwise_resume(tmp_path, optimizer):
    """Files know one order of axes; the optimizer's state comes back in that of the weights."""
    world = World.make(tmp_path)
    settings = {"model.name": "full", "train.channels_last": True, "train.optimizer": optimizer, "train.ema": 0.9}
    settings |= {"train.checkpoint_every": 1, "train.learning_rate": 1e-4}
    world.train("straight", settings | {"train.steps": 2})
    world.train("stopped", settings | {"train.steps": 1})
    world.train("stopped", settings | {"train.steps": 2})
    assert_same(contents(tmp_path / "straight"), contents(tmp_path / "stopped"))


@pytest.mark.slow
def test_all_that_makes_a_run_fast_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """Compiled blocks, inversions of micro-batches together, checkpoints in the background; held-out pairs, whose
    last micro-batch is small. The first update compiles what there is to compile, whatever comes later."""
    monkeypatch.setattr("diffpo.models.compiling.BACKEND", "eager")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))  # else it would be set for later tests
    world = World.make(tmp_path, rows=20)
    settings = {"method.name": "inpo", "train.compile": "regional", "train.channels_last": True, "train.ema": 0.9}
    settings |= {"train.batch": 3, "train.accumulate": 2, "train.async_checkpoints": True, "train.checkpoint_every": 1}
    settings |= {"data.validation_fraction": 0.2, "train.eval_every": 1, "train.eval_pairs": 4}
    graphs = []
    torch._dynamo.reset()
    counters.clear()
    for name, steps in (("stopped", 1), ("straight", 2), ("stopped", 2)):
        world.train(name, settings | {"train.steps": steps})
        assert not counters["graph_break"]
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and len(set(graphs)) == 1
    assert_same(contents(tmp_path / "straight"), contents(tmp_path / "stopped"))


def test_a_schedule_goes_on_where_it_was(tmp_path):
    world = World.make(tmp_path)
    warm = {"train.warmup_steps": 2, "train.checkpoint_every": 1}
    world.train("straight", warm | {"train.steps": 4})
    world.train("stopped", warm | {"train.steps": 3})
    world.train("stopped", warm | {"train.steps": 4})
    rates = [line["learning_rate"] for line in metrics(tmp_path / "stopped")]
    assert rates == pytest.approx([0.0, 1e-3 / 2, 1e-3, 1e-3])
    assert_same(contents(tmp_path / "straight"), contents(tmp_path / "stopped"))


def test_resuming_without_the_newest_checkpoint_goes_back_to_the_one_before(tmp_path):
    """Metrics beyond the checkpoint, and a line that a kill cut off, are written anew."""
    import shutil

    world = World.make(tmp_path)
    settings = {"train.steps": 4, "train.checkpoint_every": 2}
    run = world.train("run", settings)
    whole = contents(run)
    shutil.rmtree(run / "checkpoints" / "step-000004")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5})[:-3])
    world.train("run", settings)
    assert_same(whole, contents(run))


def test_another_table_under_the_same_path_is_refused(tmp_path):
    world = World.make(tmp_path)
    world.train("run", {"train.steps": 2})
    table = world.folder / "pairs" / "pairs.jsonl"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0].replace("thing", "other thing"), *lines[1:]]) + "\n")
    with pytest.raises(UserError, match="learned from other pairs"):
        world.train("run", {"train.steps": 3})
    table.write_text("\n".join(lines) + "\n")  # the same rows in a newer file
    world.train("run", {"train.steps": 3})
    assert [line["step"] for line in metrics(world.folder / "run")] == [1, 2, 3]


def test_another_model_under_the_same_path_is_refused(tmp_path):
    """The network's weights have changed: what is tuned, and the reference, would be others."""
    from safetensors.torch import load_file, save_file

    world = World.make(tmp_path)
    world.train("run", {"train.steps": 2})
    file = tmp_path / "sd15" / "unet" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    save_file({name: x * 1.01 for name, x in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"learned from another model: .* Bring them back, or give another folder"):
        world.train("run", {"train.steps": 3})
    file.write_bytes(whole)
    world.train("run", {"train.steps": 3})
