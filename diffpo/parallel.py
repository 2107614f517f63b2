"""The processes' common ground: one device, DDP, FSDP2 or DeepSpeed, as `accelerate launch` or `torchrun` set it up."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState

from diffpo.errors import UserError

if TYPE_CHECKING:
    from diffpo.config import Config


def make_accelerator(config: Config) -> Accelerator:
    """Start accelerate, and the trackers' own packages.

    Raises:
        UserError: A tracker or a precision is not to be had here, the processes do not know of each other, or the
            sharding asked for is FSDP1.
    """
    trackers = list(config.train.trackers)
    try:
        accelerator = Accelerator(
            mixed_precision=config.train.mixed_precision,
            log_with=trackers or None,  # pyright: ignore[reportArgumentType]
            project_dir=config.train.output,
        )
    except (ValueError, ImportError) as error:
        raise UserError(
            f"train.trackers={trackers} and train.mixed_precision={config.train.mixed_precision} cannot both be had "
            f"here: {error} A tracker is installed with pip install 'diffpo[{(trackers or ['wandb'])[0]}]'"
        ) from error
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:  # each would train alone, all in one folder
        raise UserError(
            f"{launched} processes were launched, but accelerate sees {accelerator.num_processes}. "
            "On CPUs set ACCELERATE_USE_CPU=true; on GPUs launch no more processes than there are GPUs"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        _shard(accelerator)
    return accelerator


def _shard(accelerator: Accelerator) -> None:
    """Make sure that FSDP2 was meant, and that it happens: accelerate drops it without a word on CPU processes."""
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if state.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError("diffpo shards with FSDP2: set fsdp_version: 2 (see configs/accelerate/fsdp2.yaml)")
