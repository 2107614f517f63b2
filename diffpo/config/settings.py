"""What the loop and its sample grids are told: the config's `train` and `sample` sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffpo.core.types import Block


@dataclass(frozen=True, kw_only=True)
class Train(Block):
    """How the loop runs."""

    steps: int
    """Updates of the optimizer."""
    output: str | None = None
    """Run folder. Default: `runs/<name of the config file>`."""
    seed: int = 0
    """Seed of every draw: order, noise, times, dropout, the adapter's start."""
    batch: int = 1
    """Pairs per forward, per process."""
    accumulate: int = 1
    """Forwards per update, per process; pairs per update = batch x accumulate x processes."""
    learning_rate: float = 1e-5
    """What the optimizer uses: nothing multiplies it."""
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"] = (
        "constant_with_warmup"
    )
    """diffusers' learning-rate schedules."""
    warmup_steps: int = 0
    """Updates of linear warm-up."""
    optimizer: Literal["adamw", "adamw8bit", "adafactor"] = "adamw"
    """AdamW (fused), 8-bit AdamW (bitsandbytes, extra `bnb`), or Adafactor without its own schedule."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.999
    """Decay of the second moment."""
    adam_epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    max_grad_norm: float | None = 1.0
    """Clip the gradient's norm to this; null leaves it."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Autocast of the forward; trained weights keep `dtype`."""
    dtype: Literal["float32", "float64"] = "float32"
    """Dtype of trained weights and of the step's arithmetic."""
    ema: float = 0.0
    """Decay of an average of the weights, which is then sampled and exported; 0 keeps none."""
    compile: Literal["regional"] | None = None
    """Compile the network's repeated blocks with torch.compile."""
    split_forward: bool = False
    """One forward per side of the pairs, for models of which only one row fits."""
    checkpoint_every: int = 100
    """Updates between checkpoints; the last update always makes one."""
    keep_last: int = 2
    """Checkpoints to keep."""
    eval_every: int = 0
    """Updates between held-out losses (fixed times and noises); 0 makes none."""
    eval_pairs: int = 64
    """Held-out pairs to judge, at most."""
    sample_every: int = 0
    """Updates between sample grids of `sample.prompts`; 0 makes none."""
    log_every: int = 1
    """Updates between lines of `metrics.jsonl`."""
    trackers: tuple[Literal["trackio", "wandb", "tensorboard"], ...] = ()
    """Where to send metrics besides `metrics.jsonl`."""
    project: str = "diffpo"
    """Project name in the trackers."""

    def __post_init__(self):
        """Refuse what cannot run.

        Raises:
            ValueError: A count is below its least value, or the EMA's decay is no fraction.
        """
        for name in ("steps", "batch", "accumulate", "checkpoint_every", "keep_last", "log_every", "eval_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("seed", "warmup_steps", "eval_every", "sample_every", "learning_rate", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm is {self.max_grad_norm}; it must be positive, or null to clip nothing")
        if not 0.0 <= self.ema < 1.0:
            raise ValueError(f"ema is {self.ema}; it must be at least 0 and below 1, such as 0.999")


@dataclass(frozen=True, kw_only=True)
class Sample(Block):
    """What is drawn for the eye while training."""

    prompts: tuple[str, ...] | str = ()
    """Prompts, a file of prompts, or a named set such as `shapes:validation:4`."""
    seeds: tuple[int, ...] = (0,)
    """One image per prompt and seed, the same for base and tuned model."""
    steps: int = 30
    """Sampler steps."""
    guidance: float = 7.5
    """Classifier-free guidance scale."""
    batch: int = 4
    """Images per forward."""

    def __post_init__(self):
        """Refuse what cannot be drawn.

        Raises:
            ValueError: There is no seed, or a count below one.
        """
        if not self.seeds or min(self.seeds) < 0 or self.steps < 1 or self.batch < 1:
            raise ValueError(
                f"seeds are {list(self.seeds)}, steps {self.steps}, batch {self.batch}; "
                "give seeds from 0, and at least 1 step and 1 image per forward"
            )
