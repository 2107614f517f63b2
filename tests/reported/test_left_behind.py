"""A kill after the last checkpoint was written: the same command removes what the killed one was about to remove."""

from __future__ import annotations

import pytest
from runs import World, assert_same, checkpoints, contents

from diffpo.training import checkpoint

RUN = {"train.steps": 3, "train.checkpoint_every": 1, "train.keep_last": 1}


def test_no_checkpoint_is_left_behind(tmp_path, monkeypatch):
    world, discard = World.make(tmp_path), checkpoint.discard

    def interrupted(path):
        if path.name == "step-000002":
            raise KeyboardInterrupt
        discard(path)

    whole = world.train("whole", RUN)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "discard", interrupted)
        world.train("run", RUN)
    run = world.folder / "run"
    assert checkpoints(run) == ["step-000002", "step-000003"] and not (run / "final").exists()
    world.train("run", RUN)
    assert checkpoints(run) == ["step-000003"]
    assert_same(contents(whole), contents(run))
