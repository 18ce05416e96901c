"""Errors that a user can act on: commands print their message without a traceback."""

from __future__ import annotations

# Exit statuses of commands: the run failed, bad input, stopped (128 + SIGINT, as in shells).
EXIT_RUN, EXIT_CONFIG, EXIT_INTERRUPTED = 1, 2, 130


class RlhfRayError(Exception):
    """What went wrong, in words that name the thing to change."""


class ConfigError(RlhfRayError):
    """The job cannot start as it is configured."""


class RunError(RlhfRayError):
    """The job started and cannot go on."""


class ActorDied(RunError):
    """A rank, a replica or another actor is gone; whoever waited for it gets this.

    Attributes:
        role: Of the actor; empty where it is none of a role's.
        index: Of the rank or replica in its role.
        operation: What it was asked.
        age_s: Since when.
    """

    role: str
    index: int
    operation: str
    age_s: float

    @classmethod
    def of(cls, message: str, *, role: str, index: int, operation: str, age_s: float) -> ActorDied:
        """One with these attributes, which travels between processes with them."""
        died = cls(message)
        died.role, died.index, died.operation, died.age_s = role, index, operation, age_s
        return died
