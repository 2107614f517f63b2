"""What learns: policy, reference, optimizer, schedule and average, made once and saved in checkpoints."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from diffpo.config.run import Config, Train
from diffpo.core.types import DTYPES, HALF
from diffpo.disk.rows import cache_home
from diffpo.errors import UserError
from diffpo.media.users import Users
from diffpo.models.base import Denoiser
from diffpo.models.finding import find_model
from diffpo.models.load import load
from diffpo.models.reference import Reference
from diffpo.training import checkpoint
from diffpo.training.average import Average
from diffpo.training.optimizers import make_optimizer, make_schedule
from diffpo.training.processes import by_the_first
from diffpo.training.selection import Selection


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
    selection: Selection | None = None

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that learn."""
        return [p for p in self.policy.network.parameters() if p.requires_grad]


def prepare_learner(
    config: Config, accelerator: Accelerator, needs_reference: bool | None = None, users: Users | None = None
) -> Learner:
    """Load policy and reference, and wrap what accelerate wraps.

    Without a word about `needs_reference`, a method that needs a reference gets one. `users` are those that the policy
    is told.
    """
    if needs_reference is None:
        needs_reference = config.method.needs_reference
    train, autocast = config.train, HALF.get(config.train.mixed_precision)
    with torch.random.fork_rng():
        torch.manual_seed(train.seed)  # an adapter's first factor is drawn from the global generator
        dtype, rate = DTYPES[train.dtype], config.data.fps
        embedding = None if users is None else users.embedding
        policy, reference = load(
            config.model, dtype, needs_reference, rate, embedding, device=accelerator.device, autocast=autocast
        )
    return wrap(config, accelerator, policy, reference)


def wrap(config: Config, accelerator: Accelerator, policy: Denoiser, reference: Reference | None) -> Learner:
    """Let a policy and its reference learn as the config says: what accelerate wraps, optimizer, schedule, average."""
    train = config.train
    allow_tf32(train, accelerator.device)
    policy.network.train()
    bare = policy.network
    own = reference is not None and reference.denoiser.network is not bare  # a network of the reference's own
    speed_up(policy, config, accelerator)
    optimizer = make_optimizer(train, [p for p in bare.parameters() if p.requires_grad])
    policy.network, optimizer = accelerator.prepare(bare, optimizer)
    if reference is not None and own:
        speed_up(reference.denoiser, config, accelerator)
        if accelerator.is_fsdp2:
            from accelerate.utils.fsdp_utils import fsdp2_prepare_model

            reference.denoiser.network = fsdp2_prepare_model(accelerator, reference.denoiser.network)
    elif reference is not None:
        reference.denoiser.layout = policy.layout
    schedule = make_schedule(train, optimizer.optimizer)
    average = Average(policy.network, train.ema) if train.ema else None
    return Learner(config, accelerator, policy, reference, optimizer, schedule, average)


def allow_tf32(train: Train, device: torch.device) -> None:
    """Say whether a GPU may round what it multiplies in float32; torch alone lets convolutions do so, not products."""
    if device.type == "cuda":
        allowed = train.mixed_precision in HALF if train.tf32 is None else train.tf32
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed


def speed_up(denoiser: Denoiser, config: Config, accelerator: Accelerator) -> None:
    """Lay a network out, fuse and compile it, as the config says."""
    train, device = config.train, accelerator.device
    able = denoiser.can_fuse(device) and train.compile is None and train.mixed_precision in HALF
    if train.fused and not able:
        raise UserError(
            "train.fused=true needs a Stable Diffusion UNet (and Triton) or a LoRA, on a GPU in half precision, but "
            f"this is a {type(denoiser.network).__name__} on {device.type} with "
            f"train.mixed_precision={train.mixed_precision}: leave train.fused out"
        )
    plain = accelerator.distributed_type in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    fused = able and plain if train.fused is None else train.fused
    if train.channels_last and denoiser.convolutional and plain:  # shards know no weights that lie otherwise
        denoiser.put_channels_last()
    if fused:
        denoiser.fuse()
    if train.compile is not None:
        denoiser.compile(train.compile, cache_home(config.data.cache_dir) / "compiled")


def identify_model(config: Config) -> list[str]:
    """Name the content of the weights that policy and reference are made of."""
    model = config.model
    found = find_model(model.path, lora=model.lora, denoiser=model.denoiser)
    return [part.identity for part in (found.base, found.lora, found.denoiser) if part is not None]


OTHERS = {
    "pairs": "from other pairs: the table under data.path has changed (rows, captions or labels). Bring the old table",
    "model": "from another model: the weights under model.path, model.lora or model.denoiser have changed. Bring them",
}
"""What is said where a checkpoint was made from something else, by what it was made from."""


def resume(learner: Learner, folder: Path, identity: Mapping[str, Any]) -> int:
    """Continue from the newest checkpoint, and return the updates done.

    `identity` changes with the pairs, and with the weights that are tuned (the keys of `OTHERS`). What was learned from
    others, or by another network, is refused, as is a disk that the processes do not share.
    """
    path = checkpoint.newest(folder / "checkpoints")
    done = torch.tensor([checkpoint.updates_done(path)], device=learner.accelerator.device)
    seen = learner.accelerator.gather(done).tolist()
    if len(set(seen)) > 1:
        raise UserError(
            f"the processes find different checkpoints ({', '.join(map(str, seen))} updates): {folder} must lie on a "
            "disk that all hosts share, and so must the cache (data.cache_dir)"
        )
    if path is None:
        return 0
    tensors, values = checkpoint.load(path)
    for what, words in OTHERS.items():
        if values["identity"][what] != identity[what]:
            raise UserError(
                f"{path} learned {words} back, or give another folder with train.output=..., or begin anew with --fresh"
            )
    _check_fits(path, tensors["weights"], learner)
    network, optimizer = learner.policy.network, learner.optimizer.optimizer
    checkpoint.restore(network, optimizer, tensors["weights"], tensors["optimizer"], values["optimizer"])
    schedule, updates = learner.schedule, values["schedule"]
    schedule.last_epoch = updates  # where it was; the learning rates are the config's, which may have changed
    schedule._last_lr = [base * at(updates) for base, at in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, base, rate in zip(learner.optimizer.param_groups, schedule.base_lrs, schedule._last_lr, strict=True):
        group.update(initial_lr=base, lr=rate)
    if learner.average is not None:
        learner.average.load(network, tensors["average"], values["average"])
    if learner.selection is not None and values.get("selection") is not None:
        learner.selection.load(values["selection"], tensors.get("selected", {}))
    if learner.accelerator.scaler is not None and values["scaler"]:
        learner.accelerator.scaler.load_state_dict(values["scaler"])
    train = learner.config.train
    by_the_first(  # a kill may have come between the last checkpoint and this
        learner.accelerator,
        lambda: checkpoint.prune(path.parent, keep=train.keep_last, every=train.checkpoint_every),
    )
    return values["step"]


def check_finite(tensors: Mapping[str, Mapping[str, Tensor]], done: int, config: Config) -> None:
    """Refuse to write what is no number, and say how to go on."""
    if bad := checkpoint.find_not_finite(tensors):
        total = sum(map(len, tensors.values()))
        raise UserError(
            f"after update {done}, {len(bad)} of {total} tensors are not finite, the first is {bad[0]}. They were not "
            f"written. {how_to_go_on(config)}"
        )


def how_to_go_on(config: Config) -> str:
    """Say what to do after numbers that are none."""
    half = config.train.mixed_precision == "fp16"
    other = ", or with train.mixed_precision=bf16 or train.mixed_precision=no" if half else ""
    return (
        "What was written before is whole. Run the same command again with a lower learning rate, such as "
        f"train.learning_rate={config.train.learning_rate / 10:.3g}{other}: it goes on from the newest checkpoint. If "
        "it stops again, the weights in there have already gone astray: add --fresh to begin anew"
    )


def _check_fits(path: Path, weights: dict[str, Tensor], learner: Learner) -> None:
    named = learner.policy.network.named_parameters()
    learning = {name.removeprefix("module."): str(tuple(p.shape)) for name, p in named if p.requires_grad}
    held = {name: str(tuple(x.shape)) for name, x in weights.items()}
    if wrong := checkpoint.differences(held, learning):
        name, (there, here) = next(iter(wrong.items()))
        raise UserError(
            f"{path} holds the weights of another network: {name} is {there or 'not'} there and {here or 'not'} in the "
            f"model under model.path={learner.config.model.path}. Bring that model back, or give another folder with "
            "train.output=..., or begin anew with --fresh"
        )


def averaged(learner: Learner) -> AbstractContextManager[None]:
    """Let the policy have the averaged weights for a while, if there are any."""
    return nullcontext() if learner.average is None else learner.average.applied(learner.policy.network)
