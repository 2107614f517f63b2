"""One update, and one judgement of held-out pairs: forward, loss, backward, the optimizer's step.

An update takes the rows of a whole effective batch, on all processes, and divides by their number of terms, so that
1 x 8, 2 x 4 and 8 x 1 pairs give the same update:

    loss = sum over micro-batches, processes and rows / total number of terms

Nothing waits for the device before the gradient is clipped.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor

from diffpo.core.step import preference_step
from diffpo.core.types import DTYPES, PairBatch, Rng, StepOutput, moved, moved_to
from diffpo.data.loader import MicroBatches, PairLoader
from diffpo.errors import UserError
from diffpo.training.learner import Learner, how_to_go_on
from diffpo.training.log import mean_metrics
from diffpo.training.processes import gather_rows, in_turn, share
from diffpo.training.serving import inverted


def update(learner: Learner, batches: Sequence[PairBatch], epoch: int, micro_seed: int) -> dict[str, float]:
    """Learn from one effective batch, and return values to log, averaged over the terms of all processes.

    `batches` are this process's micro-batches, which may come one by one (`MicroBatches`). The rows' draws depend on
    the epoch; the networks' own dropout, where there is any, on `micro_seed`, the number of the update.
    """
    config, accelerator = learner.config, learner.accelerator
    labels = batches.labels if isinstance(batches, MicroBatches) else batches
    counts = torch.cat([config.method.count(batch) for batch in labels])
    total = gather_rows(accelerator, counts.double()).sum()
    judged, names, rows = [], [], torch.empty(0)
    torch.manual_seed(hash((config.train.seed, micro_seed, len(batches), accelerator.process_index)))  # for inversions
    for i, batch in enumerate(inverted(learner, batches, epoch)):
        torch.manual_seed(hash((config.train.seed, micro_seed, i, accelerator.process_index)))
        last = i == len(batches) - 1  # gradients are exchanged after the last micro-batch only
        accelerator.gradient_state._set_sync_gradients(last)
        with nullcontext() if last else accelerator.no_sync(learner.policy.network):
            output = forward(learner, batch, epoch)
            names = list(output.metrics)
            judged.append(as_rows(learner, batch, output))
            if last and accelerator.distributed_type == DistributedType.DEEPSPEED:  # whose backward is also a step
                rows = read_rows(learner, judged, epoch)
            share = accelerator.num_processes / total.clamp(min=1)  # of one term; no term at all: a loss of zero
            accelerator.backward(output.loss.sum() * moved_to(share, output.loss))
    norm = clip(learner)  # nothing has waited for the device until here
    if not len(rows):
        rows = read_rows(learner, judged, epoch)
    norm = check_norm(learner, norm)
    metrics = mean_metrics(["loss", *names], rows[:, 2:], rows[:, 1])
    metrics |= {"grad_norm": norm, "learning_rate": learner.schedule.get_last_lr()[0], "epoch": epoch}
    step_optimizer(learner, norm)
    return metrics


def forward(learner: Learner, batch: PairBatch, epoch: int) -> StepOutput:
    """Run the method's step on one micro-batch, under autocast if the config says so."""
    train, device = learner.config.train, learner.accelerator.device
    with learner.accelerator.autocast():
        return preference_step(
            learner.config.method,
            learner.policy,
            learner.reference,
            batch.to(device, DTYPES[train.dtype]),
            Rng(train.seed, learner.config.data.draw(epoch), batch.index),
            split_forward=train.split_forward,
        )


def as_rows(learner: Learner, batch: PairBatch, output: StepOutput) -> Tensor:
    """Lay out what is known of each row, `[b n]` in float64: its number, its terms, its loss and its metrics.

    They stay on the device, where it knows float64, so that nobody waits for them yet.
    """
    count, device = learner.config.method.count(batch), learner.accelerator.device
    columns = (batch.index, count, output.loss.detach(), *output.metrics.values())
    place = "cpu" if device.type == "mps" else device
    return torch.stack([moved(column, place, torch.float64) for column in columns], dim=1)


def read_rows(learner: Learner, judged: list[Tensor], epoch: int) -> Tensor:
    """Collect the rows (see `as_rows`) of all micro-batches and processes on the CPU, once the device has made them.

    A loss that is no number stops all processes together, before the optimizer's step.
    """
    rows = gather_rows(learner.accelerator, torch.cat(judged)).cpu()
    check_losses(rows, epoch, how_to_go_on(learner.config))
    return rows


def least_norm(learner: Learner) -> float:
    """Norm of a gradient that is everywhere as large as Adam's epsilon: below it, an update hardly moves anything."""
    adam = learner.config.train.optimizer != "adafactor"
    return learner.config.train.adam_epsilon * math.sqrt(sum(p.numel() for p in learner.trained)) if adam else 0.0


def check_losses(rows: Tensor, epoch: int, advice: str) -> None:
    """Stop, on all processes together and before the optimizer's step, at a loss that is no number (see `as_rows`)."""
    bad = rows[~rows[:, 2].isfinite(), 0].long().tolist()
    if bad:
        raise UserError(
            f"the loss of {len(bad)} row(s) is not finite: rows {', '.join(map(str, bad[:20]))} of the table (epoch "
            f"{epoch}). Nothing was updated. If it is their fault, `diffpo data inspect` may tell. {advice}"
        )


def clip(learner: Learner) -> Tensor | None:
    """Clip the gradient, and return its norm before that, which lies on the device; DeepSpeed tells none."""
    accelerator, most = learner.accelerator, learner.config.train.max_grad_norm
    return accelerator.clip_grad_norm_(learner.policy.network.parameters(), math.inf if most is None else most)


def check_norm(learner: Learner, norm: Tensor | None) -> float:
    """Read the gradient's norm; one that is not finite is left to a loss scaler, or fatal."""
    if norm is None:
        return math.nan
    value = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if not math.isfinite(value) and learner.accelerator.scaler is None:
        raise UserError(
            f"the gradient's norm is {value} although every loss is finite. Nothing was updated. "
            f"{how_to_go_on(learner.config)}"
        )
    return value


def step_optimizer(learner: Learner, norm: float) -> None:
    """Update the weights, the schedule and the average; an fp16 overflow that the scaler handles updates nothing.

    A fused optimizer leaves the weights alone by itself then, unseen by accelerate: the gradient's norm tells.
    """
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    overflow = learner.accelerator.scaler is not None and not math.isfinite(norm)
    if not overflow and not learner.accelerator.optimizer_step_was_skipped:
        learner.schedule.step()
        if learner.average is not None:
            learner.average.update(learner.policy.network)


@torch.no_grad()
def evaluate(learner: Learner, held_out: PairLoader) -> dict[str, float]:
    """Judge the held-out pairs, with the same times and noises every time; the processes share them."""
    train, mine = learner.config.train, []
    rank, world = share(learner.accelerator)
    learner.policy.network.eval()  # an adapter's dropout would not be the same every time
    batches = held_out.held_out(train.batch, limit=train.eval_pairs, rank=rank, world=world)
    for batch in inverted(learner, batches, epoch=0):
        output = forward(learner, batch, epoch=0)
        mine.append((list(output.metrics), as_rows(learner, batch, output)))
    learner.policy.network.train()
    judged = in_turn([(names, rows.cpu()) for names, rows in mine], world)
    names, rows = judged[0][0], torch.cat([rows for _, rows in judged])
    metrics = mean_metrics(["loss", *names], rows[:, 2:], rows[:, 1])
    return {f"eval/{name}": value for name, value in metrics.items()}
