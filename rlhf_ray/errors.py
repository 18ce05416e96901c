"""Errors that a user can act on: commands print their message without a traceback."""

# Exit statuses of commands: the run failed, bad input, stopped (128 + SIGINT, as in shells).
EXIT_RUN, EXIT_CONFIG, EXIT_INTERRUPTED = 1, 2, 130


class RlhfRayError(Exception):
    """What went wrong, in words that name the thing to change."""


class ConfigError(RlhfRayError):
    """The job cannot start as it is configured."""


class RunError(RlhfRayError):
    """The job started and cannot go on."""
