"""What of the reference is kept on disk, and whether it must be in memory at all."""

import gc

import torch
from accelerate import Accelerator

from diffpo.config.run import Config
from diffpo.data.loader import PairLoader
from diffpo.data.plan import Schedule
from diffpo.training.kept import Kept, all_rows
from diffpo.training.learner import Learner
from diffpo.training.processes import gather_rows
from diffpo.training.reference_errors import KeptErrors
from diffpo.training.trajectories import KeptTrajectories


def find_kept(config: Config, loader: PairLoader, held_out: PairLoader | None) -> list[Kept]:
    """List what the config asks to keep, in the order in which it is made; nothing is computed."""
    inversion, draws, kept = config.method.cached_inversion, config.data.reference_draws, list[Kept]()
    if inversion is not None:
        kept += [KeptTrajectories(config, inversion, each) for each in (loader, held_out) if each is not None]
    if draws is not None:
        kept.append(KeptErrors(config, draws, loader, all_rows(loader)))
        if held_out is not None:  # always judged by the draws of the first epoch
            kept.append(KeptErrors(config, 1, held_out, all_rows(held_out)[: config.train.eval_pairs]))
    return kept


def is_asked(config: Config, accelerator: Accelerator, kept: list[Kept]) -> bool:
    """Whether the reference will be asked about anything: then all processes load it."""
    if config.data.reference_draws is None:
        return config.method.needs_reference
    missing = torch.tensor([[not each.complete for each in kept]])
    return bool(gather_rows(accelerator, missing).any())


def keep(learner: Learner, kept: list[Kept]) -> None:
    """Make what is kept and missing, and let go of a reference that nobody asks any more."""
    for each in kept:
        each.make(learner)
    if learner.config.data.reference_draws is not None:
        learner.reference = None
        gc.collect()
        if learner.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()


def describe_draws(config: Config, draws: int, plan: Schedule, pairs: int) -> str:
    """Say what keeping the reference's errors costs and saves, in pairs that go through it."""
    once, epochs = draws * pairs, config.train.steps / plan.updates_per_epoch
    asked = config.train.steps * plan.effective
    kept = f"{draws} for each pair: the reference is asked {once:,} times once, and not {asked:,} times while training"
    if once <= asked:
        return kept
    return f"{kept}; {epochs:.3g} epochs alone do not pay for that, other runs with the same draws may"
