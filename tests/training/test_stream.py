"""Runs that read encoded pairs from shards."""

from __future__ import annotations

import shutil

import pytest
from accelerate import PartialState
from runs import World, assert_same, contents, metrics

from diffpo.config.run import build
from diffpo.errors import ConfigError, UserError
from diffpo.training.stream import write_stream

CHANGES = {"data.validation_fraction": 0.2, "train.eval_every": 2, "train.checkpoint_every": 2, "train.steps": 6}
CHANGES |= {"data.encoded_window": 2, "train.keep_last": 5, "train.batch": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("stream"), rows=14)


@pytest.fixture(scope="module")
def encoded(world):
    """Shards of three pairs."""
    place = str(world.folder / "encoded")
    index = write_stream(build(world.tree("any", CHANGES)), place, PartialState(cpu=True), shard_rows=3)
    assert len(index.splits["train"].shards) > 2 and index.splits["validation"].shards
    return place


def test_a_stopped_run_goes_on_with_the_same_bits(world, encoded):
    changes = CHANGES | {"data.encoded": encoded}
    straight = world.train("straight", changes)
    world.train("stopped", changes | {"train.steps": 4})
    resumed = world.train("stopped", changes)
    assert_same(contents(straight), contents(resumed))
    assert "eval/loss" in metrics(straight)[-1]
    assert not (world.folder / "cache").exists()
    with pytest.raises(UserError, match=r"data.encoded: '\S+' there, None now \(pairs come in another order from enc"):
        world.train("stopped", CHANGES | {"train.steps": 7})
    moved = shutil.copytree(encoded, world.folder / "moved")
    again = world.train("stopped", changes | {"data.encoded": str(moved), "train.steps": 7})
    assert metrics(again)[-1]["step"] == 7


def test_what_does_not_fit_the_shards_is_told(world, encoded):
    with pytest.raises(UserError, match=r"was encoded with other settings: resolution is 32 here and 16 there"):
        world.train("other", CHANGES | {"data.encoded": encoded, "data.resolution": 32})
    with pytest.raises(UserError, match=r"has no index.json of encoded pairs"):
        world.train("none", CHANGES | {"data.encoded": str(world.folder / "pairs")})
    with pytest.raises(ConfigError, match=r"data.reference_draws: lies beside the encodings of the cache"):
        build(world.tree("draws", CHANGES | {"data.encoded": encoded, "data.reference_draws": 2}))
