"""Every setting reaches the loop, and the loop uses what it prepares."""

from __future__ import annotations

import pytest
import torch
from runs import World, difference, forget_accelerator, metrics, weights
from safetensors.torch import load_file

from diffpo.config.run import build
from diffpo.training.processes import make_accelerator
from diffpo.training.samples import SampleGrids
from diffpo.training.train import evaluate, forward, prepare_data, prepare_learner, update

HELD_OUT = {"data.validation_fraction": 0.3, "train.eval_every": 1, "train.batch": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("wiring"))


@pytest.fixture(autouse=True)
def another_accelerator():
    yield
    forget_accelerator()


def prepared(world, changes):
    config = build(world.tree("unused", changes))
    accelerator = make_accelerator(config)
    return prepare_data(config, accelerator), prepare_learner(config, accelerator)


def test_each_epoch_has_times_and_noises_of_its_own(world):
    """Without learning, an epoch's mean loss would else be the same in each epoch."""
    lines = metrics(world.train("epochs", {"method.name": "sft", "train.learning_rate": 0.0, "train.steps": 6}))
    first, second = ([line["loss"] for line in lines if line["epoch"] == epoch] for epoch in (0, 1))
    assert len(first) == len(second) == 3
    assert abs(sum(first) - sum(second)) > 1e-3


def test_gradients_are_clipped(world):
    """Below Adam's epsilon, an update hardly moves anything."""
    start = weights(world.train("start", {"train.steps": 1, "train.learning_rate": 0.0}))
    free = weights(world.train("free", {"train.steps": 1, "train.max_grad_norm": None}))
    tiny = {"train.max_grad_norm": 1e-12, "train.weight_decay": 0.0}
    clipped = weights(world.train("clipped", {"train.steps": 1} | tiny))
    assert difference(free, start) > 1e-4
    assert difference(clipped, start) < 1e-6


def test_autocast_computes_in_half_precision(world):
    errors = []
    for name in ("no", "bf16"):
        run = world.train(f"cast-{name}", {"train.mixed_precision": name, "train.steps": 1})
        errors.append(metrics(run)[0]["error/chosen"])
        forget_accelerator()
    full, half = errors
    assert 1e-6 < abs(half / full - 1) < 0.05


def test_captions_of_held_out_pairs_are_not_dropped(world):
    """And those of the pairs to learn from are."""
    texts = {}
    for dropout in (0.0, 1.0):
        (_, loader, held_out, _), _ = prepared(world, HELD_OUT | {"data.caption_dropout": dropout})
        rows = [int(row) for group in loader.groups for row in group][:4]
        judged = next(iter(held_out.held_out(2)))
        texts[dropout] = loader.batch(rows, 0).cond.chosen.text, judged.cond.chosen.text
    assert not texts[0.0][0].equal(texts[1.0][0])
    assert texts[0.0][1].equal(texts[1.0][1])


def test_held_out_pairs_are_judged_without_dropout_and_learning_has_it_again(world):
    (plan, loader, held_out, _), learner = prepared(world, HELD_OUT | {"method.name": "sft", "model.dropout": 0.5})
    with torch.no_grad():
        for parameter in learner.policy.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)  # the second factor starts at zero, which hides the dropout
    assert evaluate(learner, held_out) == evaluate(learner, held_out)
    assert learner.policy.network.training
    batches = next(iter(loader.updates(plan, 0, 1)))
    learner.optimizer.param_groups[0]["lr"] = 0.0
    losses = {update(learner, batches, 0, micro_seed=seed)["loss"] for seed in (0, 1)}
    assert len(losses) == 2


def test_samples_are_drawn_with_the_average(world, monkeypatch):
    draw, seen = SampleGrids.draw, []

    def watched(self, accelerator, step):
        network = self._policy.network
        seen.append({name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad})
        draw(self, accelerator, step)

    monkeypatch.setattr(SampleGrids, "draw", watched)
    ema = {"train.ema": 0.9, "train.sample_every": 3, "sample.prompts": ["thing 1"]}
    run = world.train("sampled", ema)
    held = run / "checkpoints" / "step-000003"
    (drawn,) = seen
    assert difference(drawn, load_file(held / "average.safetensors")) == 0
    assert difference(drawn, load_file(held / "weights.safetensors")) > 1e-6


@pytest.mark.parametrize("split", [False, True])
def test_a_split_forward_takes_one_side_at_a_time(world, split):
    (plan, loader, _, _), learner = prepared(world, {"train.split_forward": split})
    rows = []
    learner.policy.network.register_forward_hook(lambda _module, _inputs, output: rows.append(len(output[0])))
    with torch.no_grad():
        forward(learner, next(iter(loader.updates(plan, 0, 1)))[0], 0)
    assert rows == ([4, 4, 4, 4] if split else [8, 8])  # policy, then reference
