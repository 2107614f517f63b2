"""What the stages of the worlds' build scripts share: one resumable training loop, EMA, learning-rate schedule, files.

Every step draws from its own generator, seeded by (seed, step): a run that was killed continues as if nothing had
happened.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train."""

    steps: int
    learning_rate: float
    warmup: int = 100
    seed: int = 0
    ema: float = 0.999
    clip: float = 1.0
    weight_decay: float = 0.01
    save_minutes: float = 2.0
    log_every: int = 50
    horizon: int | None = None
    """Steps over which the learning rate falls; None is `steps`."""


def step_generator(seed: int, step: int) -> torch.Generator:
    """The only source of randomness of one training step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def learning_rate(plan: Plan, step: int) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the peak."""
    if step < plan.warmup:
        return plan.learning_rate * (step + 1) / plan.warmup
    progress = min(1.0, (step - plan.warmup) / max(1, (plan.horizon or plan.steps) - plan.warmup))
    return plan.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(
    name: str, model: nn.Module, loss: Callable[[torch.Generator], dict[str, Tensor]], plan: Plan, work: Path
) -> None:
    """Train `model` in place and leave it holding the EMA weights.

    Args:
        name: Names the files in `work`.
        model: What is trained; everything `loss` needs gradients for is in it.
        loss: Draws a batch from the generator and returns named scalars; the one called `loss` is minimised.
        plan: Steps, learning rate, EMA.
        work: Where the checkpoint (`NAME.pt`) and the log (`NAME.jsonl`) go.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    work.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay, betas=(0.9, 0.99)
    )
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    done, seconds = _load(work / f"{name}.pt", model, optimizer, average)
    started = saved = logged = time.monotonic()
    first = done
    for step in range(done, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan, step)
        terms = loss(step_generator(plan.seed, step))
        if not torch.isfinite(terms["loss"]):
            raise FloatingPointError(f"{name}: the loss is {terms['loss'].item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        optimizer.step()
        _update_average(average, model, min(plan.ema, (step + 1) / (step + 10)))
        now = time.monotonic()
        if (step + 1) % plan.log_every == 0:
            rate = (now - logged) / (step + 1 - first)
            logged, first = now, step + 1
            _log(work / f"{name}.jsonl", name, step + 1, plan.steps, rate, terms)
        if now - saved > 60 * plan.save_minutes or step + 1 == plan.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            _write(state | {"step": step + 1, "seconds": seconds + now - started}, work / f"{name}.pt")
            saved = now
    model.load_state_dict(average)


def load_average(name: str, model: nn.Module, work: Path) -> None:
    """Put the EMA weights of a checkpoint into `model`.

    Raises:
        FileNotFoundError: If the stage has not been run.
    """
    path = work / f"{name}.pt"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: run the stage that makes it (--stage of the world's build script)"
        )
    model.load_state_dict(torch.load(path, weights_only=True)["average"])


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a fresh folder, then put it in the place of the old one: nobody reads half a model."""
    temporary = folder.with_name(f".{folder.name}-new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    write(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def run_in_float32(folder: Path) -> None:
    """Half precision is for the disk: transformers would else compute in the dtype of the file."""
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def note(work: Path, name: str, values: dict) -> None:
    """Print measurements and keep them in the work folder for the card."""
    path = work / "measured.json"
    measured = json.loads(path.read_text()) if path.exists() else {}
    measured[name] = values
    path.write_text(json.dumps(measured, indent=1))
    print(f"{name}: {json.dumps(values)}", flush=True)


def _load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]
) -> tuple[int, float]:
    """Continue from a checkpoint if there is one; returns the steps done and the seconds spent."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for key, value in state["average"].items():
        average[key].copy_(value)
    print(f"{path.stem}: continuing after step {state['step']}", flush=True)
    return state["step"], state["seconds"]


@torch.no_grad()
def _update_average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - decay)
        else:
            average[key].copy_(value)


def _log(path: Path, name: str, step: int, steps: int, rate: float, terms: dict[str, Tensor]) -> None:
    values = {key: round(float(value), 5) for key, value in terms.items()}
    with path.open("a") as file:
        file.write(json.dumps({"step": step, "seconds_per_step": round(rate, 4), **values}) + "\n")
    text = " ".join(f"{key} {value:.5f}" for key, value in values.items())
    print(f"{name} {step}/{steps}  {rate:.3f} s/step  {(steps - step) * rate / 60:.1f} min left  {text}", flush=True)


def _write(state: dict, path: Path) -> None:
    """Write to a temporary name, then rename: a kill never leaves half a file."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)
