"""The noise process of models with a DDPM-type scheduler, which predict epsilon or v at integer times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffpo.core.process import DiscreteProcess, Time
from diffpo.errors import UserError

SCHEDULER_NAMES = {"eps": "epsilon", "v": "v_prediction"}
"""What diffusers' schedulers call our parametrisations of discrete models."""


def discrete_process(scheduler: Mapping[str, Any], time: Time, table: Any = None) -> DiscreteProcess:
    """Build the process of a DDPM-type scheduler from its own `alphas_cumprod`.

    Args:
        scheduler: Its configuration.
        time: How training times are drawn.
        table: The class that makes the table of the configuration; None: DDPMScheduler, in float32.

    Raises:
        UserError: The scheduler predicts something other than epsilon or v.
    """
    from diffusers import DDPMScheduler

    kind = scheduler.get("prediction_type", "epsilon")
    names: dict[str, Any] = {theirs: ours for ours, theirs in SCHEDULER_NAMES.items()}
    if kind not in names:
        raise UserError(
            f"the scheduler's prediction_type is {kind!r}; diffpo trains {' and '.join(names)} models of this family"
        )
    return DiscreteProcess(
        prediction=names[kind],
        alphas_cumprod=(table or DDPMScheduler).from_config(scheduler).alphas_cumprod,
        offset=int(scheduler.get("steps_offset", 0)),
        clean_abar=1.0 if scheduler.get("set_alpha_to_one", True) else None,
        time=time,
    )
