"""How a run is stopped: SIGTERM and SIGINT (Ctrl-C) let it write a checkpoint, say so, and end.

While updates are made, a signal is remembered and the processes agree after each update whether one of them has got
one. At other times there is nothing new to write, and the process ends at once. The exit code is 0 after SIGTERM and
130 after SIGINT. A second signal ends the process as if nobody listened.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

import torch
from accelerate import Accelerator

from diffpo.disk.progress import stderr_console

CODES = {signal.SIGTERM: 0, signal.SIGINT: 130}
"""Exit codes."""


class Stopped(SystemExit):
    """The user has asked the run to end; it says what there is to go on from."""

    def __init__(self, number: int, kept: str):
        super().__init__(CODES[signal.Signals(number)])
        self.message = f"stopped by {signal.Signals(number).name}: {kept} The same command goes on from there."


class Watch:
    """Listens for signals, and looks at the clock for `train.checkpoint_minutes`; None: never."""

    def __init__(self, accelerator: Accelerator, minutes: float | None):
        self._accelerator, self._minutes = accelerator, minutes
        self._signal, self._patient, self._saved = 0, False, time.monotonic()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # the only one that gets signals
            self._before = {number: signal.signal(number, self._hear) for number in CODES}
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._restore()
        if isinstance(error, Stopped) and self._accelerator.is_main_process:
            stderr_console().print(error.message, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """Remember signals while the block runs, for `look`."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def look(self, failed: bool = False) -> tuple[int, bool]:
        """Agree with the other processes, which all must call this after each update.

        Returns the signal that one of them has got, or 0; and whether a checkpoint is due: by the first one's clock, or
        because the one that it was writing has `failed`.
        """
        late = failed or (self._minutes is not None and time.monotonic() - self._saved >= 60 * self._minutes)
        seen = [self._signal, int(late and self._accelerator.is_main_process)]
        if self._accelerator.num_processes > 1:
            flags = self._accelerator.gather(torch.tensor([seen], device=self._accelerator.device))
            seen = flags.max(0).values.tolist()
        return seen[0], bool(seen[1])

    def saved(self) -> None:
        """Start the clock anew: a checkpoint was written."""
        self._saved = time.monotonic()

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self._restore()
        self._signal = number
        if not self._patient:
            raise Stopped(number, "nothing was lost; encodings and checkpoints that were finished stay.")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
