"""DenseDPO from video files and labels of seconds to an update of a tiny Wan, and whatever it refuses."""

import json
import math

import numpy as np
import pytest
from real_clips import video
from runs import World, forget_accelerator, metrics

from diffpo.errors import UserError

SEGMENTS = [[1, -1], [0, 1], [0, 0], [-1, -1]]
"""Of clips of 17 frames at 8 per second: 5 latent frames, of which the first three belong to the first second."""
TERMS = 5 + 2 + 0 + 5
"""Latent frames that are no ties."""
DENSE = {
    "method.name": "densedpo",
    "data.path": "clips.jsonl",
    "data.fps": 8.0,
    "data.caption_dropout": 0.0,
    "train.steps": 2,
    "train.batch": 4,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Four pairs of mp4 files of noise."""
    made = World.make(tmp_path_factory.mktemp("clips"), "wan", rows=2)
    generator, lines = np.random.default_rng(0), []
    for i, segments in enumerate(SEGMENTS):
        row = {"prompt": f"clip {i}", "segments": segments}
        for side in ("chosen", "rejected"):
            row[side] = f"clip{i}-{side}.mp4"
            frames = list(generator.integers(0, 256, (17, 16, 16, 3), np.uint8))
            (made.folder / "pairs" / row[side]).write_bytes(video(frames))
        lines.append(json.dumps(row))
    (made.folder / "pairs" / "clips.jsonl").write_text("\n".join(lines))
    yield made
    forget_accelerator()


@pytest.fixture(scope="module")
def whole(world):
    return world.train("whole", DENSE, "wan")


def test_the_first_loss_is_log_2_for_each_labelled_latent_frame(whole):
    first, second = metrics(whole)
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-6) and first["rewards/accuracies"] == 0.5
    assert second["loss"] != first["loss"] and second["error/chosen"] > 0


def test_batches_carry_labels_of_latent_frames(world):
    from diffpo.config.run import build
    from diffpo.training.processes import make_accelerator
    from diffpo.training.train import prepare_data

    config = build(world.tree("labels", DENSE, "wan"))
    _, loader, _, _ = prepare_data(config, make_accelerator(config))
    batch = loader.batch([0, 1, 2, 3], 0)
    assert batch.segments.tolist() == [[1, 1, 1, -1, -1], [0, 0, 0, 1, 1], [0] * 5, [-1] * 5]
    assert batch.latent.chosen.shape[2] == 5 and config.method.count(batch).sum() == TERMS


def test_micro_batches_learn_the_same(world, whole):
    """One of the four has no term at all. A part of the network computes in single precision."""
    micro = world.train("micro", DENSE | {"train.batch": 1, "train.accumulate": 4}, "wan")
    for a, b in zip(metrics(micro), metrics(whole), strict=True):
        assert all(a[name] == pytest.approx(b[name], rel=1e-3) for name in ("loss", "grad_norm", "error/chosen"))


def test_a_clip_and_its_labels_must_be_equally_long(world):
    with pytest.raises(UserError, match=r"4 rows have another number: row 0 has 2 for 17 frames at 8 per second, .* 5"):
        world.train("short", DENSE | {"data.segment_seconds": 0.5}, "wan")
