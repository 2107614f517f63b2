"""Processes that share work without training: which one this is, and waiting for the others."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env

from diffpo.disk.progress import stderr_console
from diffpo.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

TIMEOUT = timedelta(hours=12)
"""How long processes wait for each other: one may be encoding, writing a checkpoint, or uploading."""


def make_state() -> PartialState:
    """Learn which of how many processes this is.

    Raises:
        UserError: The processes do not know of each other.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=TIMEOUT)
    check_launched(state.num_processes)
    return state


def forget_settings() -> None:
    """Let another run of this process, which is alone, choose its precision and devices anew."""
    AcceleratorState._reset_state(reset_partial_state=True)


def check_launched(seen: int) -> None:
    """Refuse processes that do not know of each other: each would work alone, all in one folder.

    Raises:
        UserError: More were launched than accelerate has seen.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if seen != launched:
        raise UserError(
            f"{launched} processes were launched, but accelerate sees {seen}. "
            "On CPUs set ACCELERATE_USE_CPU=true; on GPUs launch no more processes than there are GPUs"
        )


def quiet_console(state: PartialState) -> Console:
    """Standard error, of the first process only."""
    console = stderr_console()
    console.quiet = not state.is_main_process
    return console
