"""An fp16 overflow updates nothing: no weight, not the schedule, not the average, also where the optimizer is fused."""

from __future__ import annotations

import pytest
import torch
from runs import World, forget_accelerator

from diffpo.config.run import build
from diffpo.training.learner import prepare_learner
from diffpo.training.processes import make_accelerator
from diffpo.training.update import step_optimizer


@pytest.mark.parametrize(("gradient", "updates"), [(float("inf"), 0), (1.0, 1)])
def test_schedule_and_average_wait_for_the_weights(tmp_path, gradient, updates):
    """With torch's scaler for CPUs in the place of a GPU's; the optimizer is fused on both."""
    world = World.make(tmp_path)
    config = build(world.tree("run", {"train.ema": 0.9, "train.warmup_steps": 2}))
    accelerator, scaler = make_accelerator(config), torch.amp.GradScaler("cpu", init_scale=1024.0)
    accelerator.scaler = scaler
    learner = prepare_learner(config, accelerator)
    scaler.scale(torch.zeros(()))  # as the loss was: the scaler begins
    for parameter in learner.trained:
        parameter.grad = torch.full_like(parameter, gradient)
    step_optimizer(learner, gradient)
    assert learner.optimizer.param_groups[0]["fused"]
    assert learner.schedule.last_epoch == learner.average.updates == updates
    assert scaler.get_scale() == (1024.0 if updates else 512.0)
    forget_accelerator()
