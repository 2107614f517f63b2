"""The processes' common ground: one device, DDP, FSDP2 or DeepSpeed, as `accelerate launch` or `torchrun` set it up."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy

from diffpo.compat import keep_freed_memory
from diffpo.config.run import Config
from diffpo.errors import UserError
from diffpo.generation.processes import TIMEOUT, check_launched

T = TypeVar("T")

BUFFERS = DistributedDataParallelKwargs(broadcast_buffers=False)
"""The networks' buffers are constant tables. DDP would send them around in every forward, also in an inversion's,
of which each process makes a number of its own."""


def make_accelerator(config: Config) -> Accelerator:
    """Start accelerate, or say what of it is not to be had here."""
    try:
        accelerator = Accelerator(
            mixed_precision=config.train.mixed_precision,
            log_with=list(config.train.trackers) or None,  # pyright: ignore[reportArgumentType]
            project_dir=config.train.output,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT), BUFFERS],
        )
    except (ValueError, ImportError) as error:
        raise UserError(f"train.mixed_precision={config.train.mixed_precision} cannot be had here: {error}") from error
    accelerator.gradient_accumulation_steps = 1  # the loop's own business, whatever a launcher's file says
    missing = set(config.train.trackers) - {str(tracker) for tracker in accelerator.log_with}
    if missing:
        name = sorted(missing)[0]
        raise UserError(f"train.trackers names {name}, which is not installed: pip install 'diffpo[{name}]'")
    check_launched(accelerator.num_processes)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # what accelerate reads off a loader, or guesses
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = config.train.batch
        settings["gradient_clipping"] = config.train.max_grad_norm or 0.0
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        _shard(accelerator, config)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def by_the_first(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Let the first process do something while the others wait; all get its result, which is plain values.

    A `UserError` that it raises is raised by all: none waits for one that has ended.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except UserError as error:
            if accelerator.num_processes == 1:
                raise
            outcome[1] = str(error)
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]


def gather_rows(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """Collect the rows `[b ...]` of all processes, on the CPU: as bytes, since Apple's devices know no float64."""
    if accelerator.num_processes == 1:
        return rows
    raw = rows.contiguous().view(len(rows), -1).view(torch.uint8).to(accelerator.device)
    return accelerator.gather(raw).cpu().view(rows.dtype).view(-1, *rows.shape[1:])


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether networks may lie in parts on all processes: then each forward needs all of them."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def share(accelerator: Accelerator) -> tuple[int, int]:
    """Which of how many shares of some forwards this process takes: of sharded networks, all."""
    return (0, 1) if is_sharded(accelerator) else (accelerator.process_index, accelerator.num_processes)


def in_turn(mine: list[T], world: int) -> list[T]:
    """Put together, on all processes, what each of `world` made of every so many pieces of work, in their order."""
    everyone = gather_object([mine]) if world > 1 else [mine]
    return [made[i] for i in range(max(map(len, everyone))) for made in everyone if i < len(made)]


def _shard(accelerator: Accelerator, config: Config) -> None:
    """Make sure that FSDP2 was meant, and that it happens: accelerate drops it without a word on CPU processes."""
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if state.distributed_type != DistributedType.FSDP:
        return
    if not accelerator.is_fsdp2:
        raise UserError("diffpo shards with FSDP2: set fsdp_version: 2 (see configs/accelerate/fsdp2.yaml)")
    if config.train.optimizer == "adafactor":
        raise UserError("train.optimizer=adafactor does not know sharded weights: use adamw under FSDP2")
    if accelerator.mixed_precision != "no":
        # gradients are summed in float32, and times and sizes are not rounded on their way in: denoisers cast
        state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float16,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
