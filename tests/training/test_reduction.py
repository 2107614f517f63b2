"""How an effective batch is cut makes no difference, whatever the method: no statistic crosses rows."""

from __future__ import annotations

import pytest
from runs import World, difference, forget_accelerator

from diffpo.methods import METHODS


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("reduction"), rows=16)


@pytest.fixture(autouse=True)
def another_accelerator():
    """Other tests may ask for another precision."""
    yield
    forget_accelerator()


def learned(world, method: str, updates: int, **cut):
    """What the trained weights are after some updates of 8 pairs, with soft labels where the method reads them."""
    from diffpo.config.run import build
    from diffpo.training.processes import make_accelerator
    from diffpo.training.train import prepare_data, prepare_learner
    from diffpo.training.update import update

    table = "labelled.jsonl" if METHODS[method].uses_preference else "pairs.jsonl"
    changes = {"method.name": method, "data.path": table, "train.dtype": "float64"}
    config = build(world.tree("reduction", changes | {f"train.{name}": value for name, value in cut.items()}))
    accelerator = make_accelerator(config)
    plan, loader, _, _ = prepare_data(config, accelerator)
    learner = prepare_learner(config, accelerator)
    for done, batches in enumerate(loader.updates(plan, 0, updates)):
        assert [batch.size for batch in batches] == [cut["batch"]] * cut["accumulate"]
        update(learner, batches, plan.position(done)[0], micro_seed=done)
    return {name: p.detach() for name, p in learner.policy.network.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def start(world):
    return learned(world, "dpo", 0, batch=8, accumulate=1)


@pytest.mark.parametrize("method", [name for name in METHODS if "user_id" not in METHODS[name].requires])
def test_eight_micro_batches_are_one_batch(world, start, method):
    """In float64, after 2 updates; inversions stop at each pair's own time."""
    whole = learned(world, method, 2, batch=8, accumulate=1)
    micro = learned(world, method, 2, batch=1, accumulate=8)
    assert difference(micro, whole) < 1e-10
    assert difference(whole, start) > 1e-4, "something was learned"
