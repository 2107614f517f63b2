"""`diffpo ...` and `python -m diffpo ...`: run a command and turn errors into exit codes.

2: the user's mistake, one clear message. 1: a bug of ours; `--debug` shows the traceback of either.
"""

from __future__ import annotations

import os
import sys

from diffpo.errors import for_the_user

DEBUG = "--debug"


def main() -> None:
    """Run the command line."""
    debug = DEBUG in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != DEBUG]
    from diffpo.commands.app import app

    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        told = for_the_user(error)
        message = told or f"{type(error).__name__}: {error} (this looks like a bug; see {DEBUG})"
        rank = os.environ.get("RANK", "0")  # of several processes each says its own: they may fail for other reasons
        print(f"diffpo{'' if rank == '0' else f' [process {rank}]'}: {message}", file=sys.stderr)
        sys.stderr.flush()
        sys.exit(1 if told is None else 2)


if __name__ == "__main__":
    main()
