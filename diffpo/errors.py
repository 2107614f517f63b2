"""Errors that are the user's to mend. Everything else that is raised is a bug of ours."""

import errno

DISK_FULL = {errno.ENOSPC: "No space left", errno.EDQUOT: "quota exceeded", errno.EFBIG: "File too large"}

WRONG_PLACE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.ENXIO),
}
"""What a path is when it is a file in the place of a folder, or cannot be read or written."""


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


def for_the_user(error: Exception) -> str | None:
    """What to tell a user who can mend an error; None where it is a bug of ours."""
    if isinstance(error, UserError) or disk_is_full(error):
        return str(error)
    if isinstance(error, OSError) and error.errno in WRONG_PLACE and error.filename is not None:
        return f"{error.filename} cannot be used: {error.strerror}. Move what is there, or give another place."
    return None
