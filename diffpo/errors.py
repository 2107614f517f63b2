"""Errors that are the user's to mend. Everything else that is raised is a bug of ours."""


class UserError(ValueError):
    """A mistake that the user can mend: the message says what was given, what is allowed, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class ConfigError(UserError):
    """One or more mistakes in a configuration, all reported at once."""
