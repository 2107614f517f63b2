"""What a run says before its first update: on which pairs it learns what, where, and from which update on."""

from pathlib import Path

import torch

from diffpo.data.loader import PairLoader
from diffpo.data.plan import Schedule
from diffpo.disk.rows import cache_home
from diffpo.training.learner import Learner


def describe_run(
    learner: Learner, plan: Schedule, loader: PairLoader, held_out: PairLoader | None, folder: Path, done: int
) -> list[str]:
    """Say in a few lines what this run is, of which an earlier start has done some updates."""
    config, accelerator, train = learner.config, learner.accelerator, learner.config.train
    usable = sum(map(len, loader.groups))
    judged = 0 if held_out is None else min(train.eval_pairs, sum(map(len, held_out.groups)))
    trained, total = (sum(p.numel() for p in some) for some in (learner.trained, learner.policy.network.parameters()))
    device = accelerator.device
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else device
    dropped = {
        "ties": loader.table.counts.ties if config.data.ties == "drop" else 0,
        "without a label": loader.table.counts.unlabelled,
        "without a prompt": loader.table.counts.promptless,
        "broken": len(loader.encodings.broken),
        "of sizes that fill no batch": plan.never_used,
    }
    lost = ", ".join(f"{number:,} {reason}" for reason, number in dropped.items() if number) or "none"
    cut = f"batch {train.batch} x accumulate {train.accumulate} x processes {accelerator.num_processes}"
    epochs = train.steps / plan.updates_per_epoch
    start = f"resumed from update {done}" if done else "new"
    lines = [
        ("run", f"{folder}: {start}, {train.steps:,} updates in all"),
        ("pairs", f"{usable - plan.never_used:,} used, {judged:,} held out to judge; dropped: {lost}"),
        ("update", f"{plan.effective:,} pairs ({cut}), {epochs:.3g} epochs in all"),
        ("model", f"{config.model.path}: {trained:,} of {total:,} parameters are trained"),
        ("device", f"{named}, {train.dtype}, mixed precision {train.mixed_precision}"),
    ]
    if config.data.cache:
        home = cache_home(config.data.cache_dir)
        size = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
        lines.append(("cache", f"{home}: {size / 2**20:,.1f} MiB"))
    return [f"{title:8}{text}" for title, text in lines]
