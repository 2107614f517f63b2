"""One writer at a time: a command holds the place that it writes to, and says who holds it to the next one.

The lock is a file beside the place, locked by the system. The system lets go of it when the process ends, however it
ends, so a kill leaves no lock behind.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from diffpo.errors import UserError


@contextlib.contextmanager
def sole_writer(place: Path, command: str, *, wait: float = 0.0) -> Iterator[None]:
    """Hold a file or folder, which need not exist yet, against other commands that would write there.

    Args:
        place: What is written.
        command: What this is, for the message that another command gives: "diffpo train".
        wait: Seconds to wait for another one to finish, for short pieces of work.

    Raises:
        UserError: Another command holds it, or the lock cannot be made there.
    """
    place = place.absolute()
    path = place.with_name(f".{place.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _acquire(path, wait)
    except OSError as error:
        raise UserError(f"{place} cannot be written ({error.strerror}): choose another place.") from error
    if handle is None:
        raise UserError(
            f"{place} is being written by {_holder(path)}. Wait until it has finished, or give another place; then run "
            "the same command again."
        )
    try:
        who = {"command": command, "process": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(who).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: who waits for this file sees that it is no longer the one
        os.close(handle)


def _acquire(path: Path, wait: float) -> int | None:
    """Open and lock the file; None if somebody else holds it until the end of the wait."""
    until = time.monotonic() + wait
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            if time.monotonic() >= until:
                return None
            time.sleep(0.05)
            continue
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                return handle
        os.close(handle)  # the one who held it removed the file in the meantime


def _holder(path: Path) -> str:
    """Who holds a lock, in words."""
    try:
        who = json.loads(path.read_text())
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(who["since"]))
        return f"`{who['command']}` (process {who['process']} on {who['host']}, since {since})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another command"
