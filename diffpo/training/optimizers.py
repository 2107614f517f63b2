"""Optimizers and learning-rate schedules by name, all from maintained libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from diffpo.compat import ensure_torchvision
from diffpo.errors import UserError

if TYPE_CHECKING:  # the benchmark uses this file on machines without pydantic
    from diffpo.config.run import Train


def make_optimizer(train: Train, parameters: list[nn.Parameter]) -> Optimizer:
    """Make the optimizer that the config names."""
    betas, lr, decay = (train.adam_beta1, train.adam_beta2), train.learning_rate, train.weight_decay
    if train.optimizer == "adafactor":
        from diffpo.training.adafactor import ForeachAdafactor

        return ForeachAdafactor(parameters, lr=lr, weight_decay=decay)
    if train.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise UserError("train.optimizer=adamw8bit needs bitsandbytes: pip install 'diffpo[bnb]'") from error
        return AdamW8bit(parameters, lr=lr, betas=betas, eps=train.adam_epsilon, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, eps=train.adam_epsilon, weight_decay=decay, fused=True)


def make_schedule(train: Train, optimizer: Optimizer) -> LambdaLR:
    """Make the schedule that the config names; it advances once per update, whatever the number of processes."""
    ensure_torchvision()
    from diffusers.optimization import get_scheduler

    return get_scheduler(train.schedule, optimizer, num_warmup_steps=train.warmup_steps, num_training_steps=train.steps)
