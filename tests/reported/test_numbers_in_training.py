"""What is not finite, or not whole, is neither written nor read; the message says how to go on, and that works."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess

import pytest
import torch
from runs import World, assert_same, contents, metrics
from safetensors.torch import load_file, save_file

from diffpo.errors import UserError
from diffpo.training import checkpoint

RUN = {"train.steps": 4, "train.checkpoint_every": 2, "train.ema": 0.9, "model.rank": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("numbers"))


@pytest.fixture(scope="module")
def straight(world):
    return contents(world.train("straight", RUN))


def change(kind, change_tensors):
    def damage(folder):
        file = folder / f"{kind}.safetensors"
        tensors = load_file(file)
        change_tensors(tensors, sorted(tensors)[0])
        save_file(tensors, file)

    return damage


def values(change_values):
    def damage(folder):
        held = json.loads((folder / "state.json").read_text())
        change_values(held)
        (folder / "state.json").write_text(json.dumps(held))

    return damage


DAMAGES = {
    "a weight is missing": change("weights", lambda tensors, name: tensors.pop(name)),
    "a weight is not finite": change("weights", lambda tensors, name: tensors[name].view(-1)[:1].fill_(torch.inf)),
    "a weight has another shape": change("weights", lambda t, name: t.update({name: t[name][:1].clone()})),
    "a weight has another dtype": change("weights", lambda t, name: t.update({name: t[name].half()})),
    "a weight too many": change("weights", lambda t, name: t.update({"more": t[name].clone()})),
    "a moment is missing": change("optimizer", lambda tensors, name: tensors.pop(name)),
    "a moment is not finite": change("optimizer", lambda tensors, name: tensors[name].view(-1)[:1].fill_(torch.nan)),
    "an average is not finite": change("average", lambda tensors, name: tensors[name].view(-1)[:1].fill_(torch.nan)),
    "no average": lambda folder: (folder / "average.safetensors").unlink(),
    "half a file": lambda folder: (folder / "weights.safetensors").write_bytes(
        (folder / "weights.safetensors").read_bytes()[:500]
    ),
    "an empty folder": lambda folder: [file.unlink() for file in folder.iterdir()],
    "half a state": lambda folder: (folder / "state.json").write_text('{"step": 4, "tens'),
    "no list of tensors": values(lambda held: held.pop("tensors")),
    "a state that is a list": lambda folder: (folder / "state.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_broken_checkpoint_is_named_and_the_advised_command_goes_on(world, straight, damage):
    run = world.train("damaged", RUN, fresh=True)
    damage(run / "checkpoints" / "step-000004")
    with pytest.raises(UserError, match=r"step-000004 is broken: .*\. step-000002 is whole\.") as caught:
        world.train("damaged", RUN)
    (command,) = re.findall(r"^  (mv .*)$", str(caught.value), re.MULTILINE)
    subprocess.run(shlex.split(command), check=True)
    world.train("damaged", RUN)
    shutil.rmtree(shlex.split(command)[-1])
    assert_same(straight, contents(run))


def test_where_no_checkpoint_is_whole_the_message_says_to_begin_anew(world):
    run = world.train("lost", RUN)
    for folder in (run / "checkpoints").iterdir():
        (folder / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"No whole checkpoint lies beside it: begin anew with --fresh"):
        world.train("lost", RUN)
    world.train("lost", RUN, fresh=True)


def test_a_checkpoint_of_another_network_is_refused(world, tmp_path):
    """The model under the same path has changed since."""
    run = world.train("grown", RUN)
    newest = checkpoint.newest(run / "checkpoints")
    weights = load_file(newest / "weights.safetensors")
    name = sorted(weights)[0]
    weights["more"] = weights.pop(name)
    held = json.loads((newest / "state.json").read_text())
    held["tensors"]["weights"]["more"] = held["tensors"]["weights"].pop(name)
    save_file(weights, newest / "weights.safetensors")
    (newest / "state.json").write_text(json.dumps(held))
    with pytest.raises(UserError, match="holds the weights of another network"):
        world.train("grown", RUN)


@pytest.mark.parametrize("what", ["weights", "optimizer"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_never_written(world, what, value):
    from diffpo.config.run import build
    from diffpo.training.export import export
    from diffpo.training.learner import prepare_learner
    from diffpo.training.processes import make_accelerator
    from diffpo.training.run import claim
    from diffpo.training.saving import Saver

    config = build(world.tree("unwritten", {"model.rank": 4}))
    accelerator = make_accelerator(config)
    learner, run = prepare_learner(config, accelerator), world.folder / "unwritten"
    claim(run, config.to_dict(), fresh=False)
    parameter = next(p for p in learner.policy.network.parameters() if p.requires_grad)
    parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step()
    saver = Saver(learner, run, {})
    saver.save(1)
    export(config, accelerator, learner.policy, run)
    before = contents_of(run)
    with torch.no_grad():
        (parameter if what == "weights" else learner.optimizer.state[parameter]["exp_avg_sq"]).view(-1)[3] = value
    with pytest.raises(UserError, match=rf"after update 2, 1 of \d+ tensors are not finite, the first is {what}: "):
        saver.save(2)
    if what == "weights":
        with pytest.raises(UserError, match="tensors are not finite"):
            export(config, accelerator, learner.policy, run)
    assert contents_of(run) == before


def contents_of(run):
    files = (path for path in sorted(run.rglob("*")) if path.is_file() and path.name != "run.json")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_following_the_advice_after_numbers_that_are_none_ends_with_a_finished_run(world):
    """A lower learning rate is accepted; where the weights are ruined already, --fresh with a lower one helps."""
    absurd = {"model.name": "full", "train.steps": 12, "train.learning_rate": 10.0, "train.checkpoint_every": 1}
    stops, run = [], None
    while run is None:
        try:
            run = world.train("followed", absurd, fresh=len(stops) > 1)
        except UserError as error:
            advised = re.search(r"such as train\.learning_rate=(\S+?): .* add --fresh to begin anew", str(error))
            assert advised, error
            absurd["train.learning_rate"] = float(advised[1])
            stops.append(float(advised[1]))
            assert len(stops) < 6
    assert stops == pytest.approx([10.0 / 10 ** (n + 1) for n in range(len(stops))]) and stops
    assert [line["step"] for line in metrics(run)] == list(range(1, 13))
