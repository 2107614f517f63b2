"""`train.select`: the update that a scorer prefers is exported, and a run may stop when nothing better comes."""

import json
import math

import pytest
import torch
from runs import World, assert_same, checkpoints, contents, metrics, weights
from safetensors.torch import load_file

from diffpo.compare.in_loop import in_loop
from diffpo.errors import ConfigError, UserError
from diffpo.scorers import ShapesUtility

SELECT = {"scorer": "pickscore,path=shapes:pickscore", "prompts": ["thing 1", "thing 2"], "every": 1}
RUN = {
    "train.steps": 4,
    "train.ema": 0.5,
    "train.learning_rate": 3e-2,
    "train.checkpoint_every": 1,
    "train.keep_last": 9,
    "train.seed": 4,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("selected"))


@pytest.fixture(scope="module")
def whole(world):
    return world.train("whole", RUN | {"train.select": SELECT})


def test_the_best_update_is_exported(whole):
    lines = metrics(whole)
    scores = [line["select/score"] for line in lines]
    best = scores.index(max(scores))
    assert best < 3 and len(set(scores)) > 2, f"the last update would be exported anyway: {scores}"
    assert best > 0, f"after the first update the average is the weights themselves: {scores}"
    assert [line["select/best"] for line in lines] == [max(scores[: i + 1]) for i in range(4)]
    assert lines[-1]["select/step"] == best + 1
    averaged = load_file(whole / "checkpoints" / f"step-{best + 1:06d}" / "average.safetensors")
    exported = weights(whole)
    assert len(exported) == len(averaged)
    held = {(tuple(x.shape), x.double().sum().item()) for x in averaged.values()}
    assert {(tuple(x.shape), x.double().sum().item()) for x in exported.values()} == held
    assert f"## Selected update ({best + 1})" in (whole / "final" / "README.md").read_text()


def test_a_look_that_is_no_better_changes_nothing_and_no_number_ends_the_run(world, monkeypatch):
    """Of updates that are equally good the earliest one is kept."""
    scores = [1.0, 1.0, math.nan]
    monkeypatch.setattr(ShapesUtility, "judge", lambda self, clips, prompts: torch.full([len(clips)], scores.pop(0)))
    with pytest.raises(UserError, match="shapes-utility gives a score that is no number, after 3"):
        world.train("told", RUN | {"train.select": SELECT | {"scorer": "shapes-utility"}})
    assert [line["select/step"] for line in metrics(world.folder / "told")] == [1, 1]


def test_a_run_that_goes_on_chooses_alike(world, whole):
    world.train("stopped", RUN | {"train.select": SELECT, "train.steps": 2})
    world.train("stopped", RUN | {"train.select": SELECT})
    again = contents(world.folder / "stopped")
    straight = contents(whole)
    assert {name for name in straight if name.endswith("selected.safetensors")}
    assert_same(
        {k: v for k, v in straight.items() if "step-000004" in k or k.startswith("final") or k == "metrics"},
        {k: v for k, v in again.items() if "step-000004" in k or k.startswith("final") or k == "metrics"},
    )


def test_it_stops_when_nothing_better_comes(world, whole):
    scores = [line["select/score"] for line in metrics(whole)]
    changes = RUN | {"train.select": SELECT | {"patience": 1}}
    run = world.train("patient", changes)
    first_worse = next(i for i in range(1, 4) if scores[i] <= max(scores[:i]))
    assert len(metrics(run)) == first_worse + 1
    assert checkpoints(run)[-1] == f"step-{first_worse + 1:06d}"
    assert (
        json.loads((run / "checkpoints" / checkpoints(run)[-1] / "state.json").read_text())["selection"]["worse"] == 1
    )
    before = contents(run)
    world.train("patient", changes)
    assert_same(before, contents(run))


def test_what_choosing_cost_is_told(world):
    """Looks after updates 2 and 4, and after the last one."""
    from diffpo.config.run import build
    from diffpo.training.selection import Selection

    select = build(world.tree("cost", RUN | {"train.select": SELECT | {"every": 2, "seeds": [0, 1]}})).train.select
    selection = Selection(select, drawer=None)
    selection.load({"step": 4, "score": 1.0, "worse": 1}, {})
    told = "update 4 of 5 is exported, whose mean pickscore is 1; choosing it cost 1 further updates and 12 images"
    assert selection.conclusion(5) == told


def test_the_scorer_is_said_to_have_had_a_hand(whole):
    said = in_loop([{"label": "mine", "tuned": str(whole)}], ["mine"], [])
    assert said == {"pickscore": "pickscore selected the update of mine: a gain on it is no independent evidence."}


def test_what_the_judge_lacks_is_missed_before_the_work(world):
    """Not at the first look, after so many updates."""
    dino = f"dino,path=shapes:pickscore,references={world.folder}/nowhere"
    for output, select, words in (
        ("no pictures", SELECT | {"scorer": dino}, "there is no folder .*nowhere"),
        ("no prompts", SELECT | {"prompts": "nowhere.txt"}, r"no prompt file nowhere\.txt"),
    ):
        with pytest.raises(UserError, match=words):
            world.train(output, RUN | {"train.select": select})
        assert not (world.folder / output / "metrics.jsonl").exists()


def test_mistakes_are_named(world):
    from diffpo.config.run import build

    for select, words in (
        ({"scorer": "pikscore", "prompts": ["a"]}, "pickscore"),
        ({"scorer": "pickscore", "prompts": []}, "prompts is empty"),
        ({"prompts": ["a"]}, "scorer"),
    ):
        with pytest.raises(ConfigError, match=words):
            build(world.tree("bad", {"train.select": select}))
