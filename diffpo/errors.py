"""Errors that are the user's to mend. Everything else that is raised is a bug of ours."""

import errno

DISK_FULL = {errno.ENOSPC: "No space left", errno.EDQUOT: "quota exceeded", errno.EFBIG: "File too large"}


class UserError(ValueError):
    """A mistake that the user can mend: the message says what was given, what is allowed, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class ConfigError(UserError):
    """One or more mistakes in a configuration, all reported at once."""


def disk_is_full(error: Exception) -> bool:
    """Whether a failed write means that the disk, a quota or a file-size limit is exhausted.

    safetensors raises an error of its own with the system's words in it, so the words count too.
    """
    number = error.errno if isinstance(error, OSError) else None
    return number in DISK_FULL or any(words in str(error) for words in DISK_FULL.values())
