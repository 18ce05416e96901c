"""Errors that a user can act on: commands print their message without a traceback."""


class RlhfRayError(Exception):
    """What went wrong, in words that name the thing to change."""


class ConfigError(RlhfRayError):
    """The job cannot start as it is configured."""


class RunError(RlhfRayError):
    """The job started and cannot go on."""
