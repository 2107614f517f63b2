"""What learns: policy, reference, optimizer, schedule and average, made once and saved in checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.optim.lr_scheduler import LambdaLR

from diffpo.config.run import Config
from diffpo.errors import UserError
from diffpo.models.base import Denoiser
from diffpo.models.load import load
from diffpo.models.reference import Reference
from diffpo.models.tuning import DTYPES
from diffpo.training import checkpoint
from diffpo.training.average import Average
from diffpo.training.optimizers import make_optimizer, make_schedule


@dataclass
class Learner:
    """All that an update changes or reads."""

    config: Config
    accelerator: Accelerator
    policy: Denoiser
    reference: Reference | None
    optimizer: AcceleratedOptimizer
    schedule: LambdaLR
    average: Average | None


def prepare_learner(config: Config, accelerator: Accelerator) -> Learner:
    """Load policy and reference, and wrap what accelerate wraps."""
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)  # an adapter's first factor is drawn from the global generator
        policy, reference = load(config.model, DTYPES[config.train.dtype], config.method.needs_reference)
    policy.network.to(accelerator.device).train()
    if config.train.compile == "regional":
        policy.compile()
    optimizer = make_optimizer(config.train, [p for p in policy.network.parameters() if p.requires_grad])
    bare = policy.network
    policy.network, optimizer = accelerator.prepare(bare, optimizer)
    if reference is not None and reference.denoiser.network is not bare:
        place_reference(reference, accelerator, compiled=config.train.compile == "regional")
    schedule = make_schedule(config.train, optimizer.optimizer)
    average = Average(policy.network, config.train.ema) if config.train.ema else None
    return Learner(config, accelerator, policy, reference, optimizer, schedule, average)


def place_reference(reference: Reference, accelerator: Accelerator, compiled: bool) -> None:
    """Put a reference that is a network of its own where the policy's is: on the device, or sharded alike."""
    network = reference.denoiser.network.to(accelerator.device)
    if compiled:
        reference.denoiser.compile()
    if accelerator.is_fsdp2:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        network = fsdp2_prepare_model(accelerator, network)
    reference.denoiser.network = network


def resume(learner: Learner, folder: Path, pairs: str) -> int:
    """Continue from the newest complete checkpoint.

    Args:
        learner: What learns.
        folder: The run's.
        pairs: Identity of the pairs.

    Returns:
        The updates done.

    Raises:
        UserError: The processes see different disks, or the checkpoint learned from other pairs.
    """
    path = checkpoint.newest(folder / "checkpoints")
    done = 0 if path is None else int(path.name.removeprefix("step-"))
    seen = learner.accelerator.gather(torch.tensor([done], device=learner.accelerator.device)).tolist()
    if len(set(seen)) > 1:
        raise UserError(
            f"the processes find different checkpoints ({', '.join(map(str, seen))} updates): {folder} must lie on a "
            "disk that all hosts share, and so must the cache (data.cache_dir)"
        )
    if path is None:
        return 0
    tensors, values = checkpoint.load(path)
    if values["pairs"] != pairs:
        raise UserError(
            f"{path} learned from other pairs: the table under data.path has changed (rows, captions or labels). "
            "Bring the old table back, or give another folder with train.output=..., or begin anew with --fresh"
        )
    checkpoint.restore(
        learner.policy.network,
        learner.optimizer.optimizer,
        tensors["weights"],
        tensors["optimizer"],
        values["optimizer"],
    )
    learner.schedule.load_state_dict(values["schedule"] | {"lr_lambdas": [None] * len(learner.schedule.lr_lambdas)})
    if learner.average is not None:
        learner.average.load(learner.policy.network, tensors["average"], values["average"])
    if learner.accelerator.scaler is not None and values["scaler"]:
        learner.accelerator.scaler.load_state_dict(values["scaler"])
    return values["step"]


def save(learner: Learner, folder: Path, done: int, pairs: str) -> None:
    """Write a checkpoint; every process takes part in collecting, the first one writes. Arguments as for `resume`."""
    accelerator = learner.accelerator
    weights = checkpoint.trained_weights(learner.policy.network)
    state, plain = checkpoint.optimizer_state(learner.policy.network, learner.optimizer.optimizer)
    tensors = {"weights": weights, "optimizer": state}
    values = {
        "step": done,
        "pairs": pairs,
        "optimizer": plain,
        "schedule": {k: v for k, v in learner.schedule.state_dict().items() if k != "lr_lambdas"},
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "average": learner.average.updates if learner.average is not None else 0,
    }
    if learner.average is not None:
        tensors["average"] = learner.average.whole(learner.policy.network)
    if accelerator.is_main_process:
        checkpoint.save(folder / "checkpoints", done, tensors, values, learner.config.train.keep_last)
    accelerator.wait_for_everyone()


@contextmanager
def averaged(learner: Learner) -> Iterator[None]:
    """Let the policy have the averaged weights for a while, if there are any."""
    if learner.average is None:
        yield
        return
    with learner.average.applied(learner.policy.network):
        yield
