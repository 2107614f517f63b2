"""Runs that read encoded pairs from shards."""

from __future__ import annotations

import shutil

import pytest
from accelerate import PartialState
from runs import World, assert_same, contents, metrics

from diffpo.config.run import build
from diffpo.errors import ConfigError, UserError
from diffpo.models.encoders import Encoders
from diffpo.training.processes import make_accelerator
from diffpo.training.stream import _recipe, open_stream, write_stream

CHANGES = {"data.validation_fraction": 0.2, "train.eval_every": 2, "train.checkpoint_every": 2, "train.steps": 6}
CHANGES |= {"data.encoded_window": 2, "train.keep_last": 5, "train.batch": 2, "data.path": "labelled.jsonl"}


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


def opened(world, encoded, changes):
    """The plan of a run and its loaders."""
    config = build(world.tree("opened", CHANGES | {"data.encoded": encoded} | changes))
    accelerator = make_accelerator(config)
    return open_stream(config, accelerator, Encoders(config.model, accelerator.device))


def test_settings_of_a_run_reach_what_reads_the_shards(world, encoded):
    """Captions are dropped while it learns and not where it is judged; micro-batches are as long as was asked for."""
    cut = {"train.batch": 1, "train.accumulate": 3, "data.caption_dropout": 0.5}
    plan, loaders = opened(world, encoded, cut)
    assert [loader.caption_dropout for loader in loaders] == [0.5, 0.0]
    assert plan.indices(0, 0).shape == (3, 1)
    assert len(opened(world, encoded, {"train.eval_every": 0})[1]) == 1


def test_what_decides_labels_of_segments_is_known_of_shards(world):
    """Where a method reads them; of others it decides nothing."""

    def recipe(**changes):
        config = build(world.tree("recipe", CHANGES | changes))
        return _recipe(config, Encoders(config.model, "cpu"))

    dense = {"method.dense": "segment"}
    others = [{"data.segment_seconds": 2.0}, {"data.segment_rule": "last"}, {"data.unequal": "trim"}]
    assert all(recipe(**change) == recipe() for change in others)
    recipes = [recipe(**dense), *(recipe(**dense, **change) for change in others)]
    assert all(recipes.count(one) == 1 for one in recipes)


def test_labels_that_a_method_cannot_learn_from_are_told(world, encoded, tmp_path):
    with pytest.raises(UserError, match=r"rows of .* have a preference below 0\.5"):
        opened(world, encoded, {"method.name": "sft", "method.sft_side": "better"})
    with pytest.raises(UserError, match="smpo needs a `preference` column"):
        changes = CHANGES | {"data.path": "pairs.jsonl", "method.name": "smpo"}
        write_stream(build(world.tree("bare", changes)), str(tmp_path), PartialState(cpu=True))
    assert not list(tmp_path.rglob("*.arrow"))


def test_what_does_not_fit_the_shards_is_told(world, encoded):
    with pytest.raises(UserError, match=r"was encoded with other settings: resolution is 32 here and 16 there"):
        world.train("other", CHANGES | {"data.encoded": encoded, "data.resolution": 32})
    with pytest.raises(UserError, match=r"has no index.json of encoded pairs"):
        world.train("none", CHANGES | {"data.encoded": str(world.folder / "pairs")})
    with pytest.raises(ConfigError, match=r"data.reference_draws: lies beside the encodings of the cache"):
        build(world.tree("draws", CHANGES | {"data.encoded": encoded, "data.reference_draws": 2}))
