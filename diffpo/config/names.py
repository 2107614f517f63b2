"""Which known name is meant: spelling, and the words that other programs use for the same thing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SYNONYMS: dict[str, tuple[str, ...]] = {
    "learning_rate": ("lr", "rate", "base_lr", "learningrate"),
    "batch": ("bs", "batch_size", "batchsize", "train_batch_size", "per_device_train_batch_size", "micro_batch_size"),
    "accumulate": ("gradient_accumulation_steps", "gradient_accumulation", "grad_accum", "accumulation_steps"),
    "steps": (
        *("epochs", "num_epochs", "num_train_epochs", "max_steps", "max_train_steps", "updates", "iterations"),
        "num_inference_steps",
    ),
    "warmup_steps": ("warmup", "lr_warmup_steps", "num_warmup_steps"),
    "schedule": ("scheduler", "lr_scheduler", "lr_schedule", "lr_scheduler_type"),
    "weight_decay": ("wd", "decay", "adam_weight_decay"),
    "max_grad_norm": ("clip", "grad_clip", "max_norm", "gradient_clipping", "clip_grad_norm"),
    "mixed_precision": ("precision", "amp", "fp16", "bf16", "autocast"),
    "optimizer": ("optim", "optimiser", "use_8bit_adam"),
    "output": ("output_dir", "out", "outdir", "save_dir"),
    "checkpoint_every": ("save_every", "save_steps", "checkpointing_steps"),
    "trackers": ("report_to", "tracker", "logger"),
    "rank": ("r", "lora_rank"),
    "alpha": ("lora_alpha",),
    "dropout": ("lora_dropout",),
    "targets": ("target_modules", "lora_target_modules"),
    "beta": ("beta_dpo", "dpo_beta"),
    "guidance": ("cfg", "cfg_scale", "guidance_scale"),
    "resolution": ("size", "image_size", "res"),
    "path": (
        *("pretrained_model_name_or_path", "model_id", "base_model", "dataset_name", "dataset", "model_name"),
        *("checkpoint", "file", "folder"),
    ),
    "prompts": ("validation_prompts", "prompt"),
    "adamw": ("adam", "torch_adam"),
    "adamw8bit": ("adam8bit", "8bit", "8bit_adam", "adam_8bit"),
    "bf16": ("bfloat16",),
    "fp16": ("float16", "half"),
    "bfloat16": ("bf16",),
    "float16": ("fp16", "half"),
    "float32": ("fp32", "float", "full"),
}
"""Our name -> what other programs, and people in a hurry, call it."""


def synonym(name: str, known: Iterable[str]) -> str | None:
    """The known name that others call so, or that is written so but for hyphens and capitals; None: there is none."""
    plain = name.lower().replace("-", "_").replace(" ", "_")
    return next((ours for ours in known if plain == ours or plain in SYNONYMS.get(ours, ())), None)


def close_match(name: str, known: Iterable[str]) -> str:
    """A question for the end of a message: which known name is meant."""
    allowed = list(known)
    found = synonym(name, allowed) or next(iter(difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)), None)
    return f" Did you mean {found}?" if found else ""
