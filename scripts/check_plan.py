"""Compare what `diffpo plan` says of memory with what was measured: the table of docs/speed.md.

    python scripts/check_plan.py            # all rows: some ten minutes on one core
    python scripts/check_plan.py shapes     # those whose command holds a word

A row is a configuration with overrides, as `diffpo plan` takes them, on one card. Models of full size were measured on
a card (`bench_sweep.py`), and these numbers stand here; the small worlds are measured now: two whole updates on the
CPU, of which torch's profiler counts every allocation from the first weight on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from diffpo.config.run import Config, load_config
from diffpo.core.types import DTYPES, HALF
from diffpo.models.outline import Outline, assemble
from diffpo.training.cards import CARDS, GIB, find_card
from diffpo.training.learner import wrap
from diffpo.training.measuring import random_pairs
from diffpo.training.planning import plan
from diffpo.training.processes import make_accelerator
from diffpo.training.update import update

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
BF16 = "train.mixed_precision=bf16 train.accumulate=1"
LORA = f"{BF16} model.dtype=bfloat16 model.rank=16"
WHOLE, SHARED = "model.gradient_checkpointing=false", "model.gradient_checkpointing=true model.recomputed_share=0.5"
ROWS: list[tuple[str, str, float | None]] = [
    ("sd15-dpo", f"{BF16} {WHOLE} train.batch=16 train.fused=false", 50.5),
    ("sd15-dpo", f"{BF16} {WHOLE} train.batch=16", 36.7),
    ("sd15-dpo", f"{BF16} {WHOLE} train.batch=24", 48.6),
    ("sd15-dpo-lora", f"{LORA} {WHOLE} train.batch=16 train.fused=false", 36.5),
    ("sd15-dpo-lora", f"{LORA} {WHOLE} train.batch=16", 21.9),
    ("sd15-dpo-lora", f"{LORA} {WHOLE} train.batch=32", 42.1),
    ("sdxl-dpo-lora", f"{LORA} {WHOLE} train.batch=4", 39.8),
    ("sdxl-dpo-lora", f"{LORA} {WHOLE} train.batch=8", 74.4),
    ("sdxl-dpo", f"{BF16} {SHARED} train.batch=8", 69.1),
    ("sdxl-dpo", f"{BF16} train.batch=4", 27.5),
    ("sd35-dpo-lora", f"{LORA} {WHOLE} train.batch=3 train.compile=regional data.resolution=1024", 38.5),
    ("sd15-dpo-lora", f"{LORA} {WHOLE} train.batch=8 train.fused=false", 19.0),  # these four on an H100
    ("sdxl-dpo-lora", f"{LORA} train.batch=2 train.fused=false", 8.0),
    ("sdxl-dpo-lora", f"{LORA} train.batch=4 train.fused=false", 11.0),
    ("sd35-dpo-lora", f"{LORA} train.batch=4 data.resolution=1024", 11.0),
    ("shapes-dpo", "", None),
    ("shapes-dpo", "train.batch=8", None),
    ("shapes-dpo", "model=lora model.path=shapes:base", None),
    ("moving-dpo", "", None),
    ("moving-densedpo", "train.batch=4", None),
]
"""Configuration, overrides, and GiB at the peak on a card with torch 2.11, most on an H200; None: fits here."""


def allocated(config: Config, drawn: Outline) -> int:
    """The most bytes that two updates on the CPU have allocated at a time, weights and optimizer included."""
    from torch.profiler import ProfilerActivity, profile

    train = config.train
    accelerator = make_accelerator(config)
    batch = random_pairs(drawn, train.batch, config.method.sides)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        both = assemble(drawn, config.model, DTYPES[train.dtype], "cpu", HALF.get(train.mixed_precision))
        learner = wrap(config, accelerator, both[0], both[1] if config.method.needs_reference else None)
        for number in range(2):
            update(learner, [batch] * train.accumulate, 0, number)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def main() -> None:
    """Print the rows as a table."""
    print("| `diffpo plan` | forecast | measured | off |\n|---|---|---|---|")
    for name, overrides, measured in ROWS:
        command = " ".join(f"configs/{name}.yaml --card {'h200' if measured else 'cpu'} {overrides}".split())
        if all(word in command for word in sys.argv[1:]):
            config = load_config(CONFIGS / f"{name}.yaml", overrides.split())
            made = plan(config, CARDS["h200"] if measured else find_card("cpu"))
            found, unit, size = (
                (measured, "GiB", GIB) if measured else (allocated(config, made.drawn) / 2**20, "MiB", 2**20)
            )
            told = made.own.bytes / size
            print(f"| `{command}` | {told:.1f} {unit} | {found:.1f} {unit} | {told / found - 1:+.0%} |", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
