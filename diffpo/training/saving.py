"""Checkpoints of a run: a copy of its state, made between two updates, that a thread of the first process writes.

    all processes    wait for the one before; copy weights, optimizer and average into host memory (`collect`)
    the thread       every number is finite; files, synced; the final name; old ones go (`checkpoint.save`)

In the background (`train.async_checkpoints`) updates go on meanwhile; else all wait for the thread. At most one
checkpoint is being written. What the thread raises is raised by all processes, at the next update or at the end.
Nothing in the thread asks another process, so sharded networks are written alike.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from diffpo.disk.progress import stderr_console
from diffpo.errors import for_the_user
from diffpo.training import checkpoint
from diffpo.training.learner import Learner, check_finite
from diffpo.training.processes import by_the_first
from diffpo.training.run import note


class Saver:
    """Writes the checkpoints of a run; as a context, it lets the last one become whole, whatever happens."""

    def __init__(self, learner: Learner, folder: Path, identity: Mapping[str, Any]):
        """Write nothing yet.

        Args:
            learner: What is saved.
            folder: The run's.
            identity: As for `learner.resume`.
        """
        accelerator, chosen = learner.accelerator, learner.config.train.async_checkpoints
        self._learner, self._folder, self._identity = learner, folder, identity
        self._behind = accelerator.device.type == "cuda" if chosen is None else chosen
        self._pool = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None
        self._given_up = threading.Event()

    @property
    def failed(self) -> bool:
        """Whether the thread has ended with an error: then `save` and `finish` raise it."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def save(self, done: int) -> None:
        """Copy the state after some updates, and begin to write it; every process must call this.

        Raises:
            UserError: This checkpoint, or the one before, cannot be written; those that are there stay.
        """
        self.finish()
        tensors, values = collect(self._learner, done, self._identity)
        by_the_first(self._learner.accelerator, lambda: self._begin(done, tensors, values))
        if not self._behind:
            self.finish()

    def finish(self) -> None:
        """Wait until what is being written is there; every process must call this. Errors as for `save`."""
        by_the_first(self._learner.accelerator, self._wait)

    def _begin(self, done: int, tensors: dict[str, dict[str, Tensor]], values: dict[str, Any]) -> None:
        note(self._folder, self._folder / "checkpoints" / checkpoint.NAME.format(done))
        self._writing = self._pool.submit(self._write, done, tensors, values)

    def _write(self, done: int, tensors: dict[str, dict[str, Tensor]], values: dict[str, Any]) -> None:
        config = self._learner.config
        check_finite(tensors, done, config)
        kept = {"keep": config.train.keep_last, "every": config.train.checkpoint_every}
        checkpoint.save(self._folder / "checkpoints", done, tensors, values, given_up=self._given_up, **kept)

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """After an error, wait for the thread, and only tell of one of its own; after a second Ctrl-C, stop it."""
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        if interrupted:
            self._given_up.set()
        self._pool.shutdown()
        other = None if self._writing is None else self._writing.exception()
        if isinstance(other, Exception) and not interrupted:
            stderr_console().print(for_the_user(other) or repr(other), highlight=False, markup=False, soft_wrap=True)


def collect(
    learner: Learner, done: int, identity: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Copy what a checkpoint holds: tensors by file, and plain values; every process must call this.

    Updates that are made later change nothing of it.
    """
    accelerator, network = learner.accelerator, learner.policy.network
    state, plain = checkpoint.optimizer_state(network, learner.optimizer.optimizer)
    tensors = {"weights": checkpoint.trained_weights(network), "optimizer": state}
    values = {
        "step": done,
        "identity": identity,
        "optimizer": plain,
        "schedule": learner.schedule.last_epoch,
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "average": learner.average.updates if learner.average is not None else 0,
    }
    if learner.average is not None:
        tensors["average"] = learner.average.whole(network)
    if learner.selection is not None:
        values["selection"] = learner.selection.state()
        if learner.selection.weights:
            tensors["selected"] = learner.selection.weights
    return tensors, values
