"""Errors that a user can act on: commands print their message without a traceback."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

# Exit statuses of commands: the run failed, bad input, training met a rule that ends it, stopped
# (128 + SIGINT, as in shells).
EXIT_RUN, EXIT_CONFIG, EXIT_TRAINING, EXIT_INTERRUPTED = 1, 2, 3, 130


class RlhfRayError(Exception):
    """What went wrong, in words that name the thing to change."""


class ConfigError(RlhfRayError):
    """The job cannot start as it is configured."""


class DataError(ConfigError):
    """Something is wrong with the data as a whole; the message names the file."""


class RowError(DataError):
    """One row is malformed: an error, or with `on_bad_row: skip` counted by its reason.

    Example: `RowError("train.jsonl:7", "not JSON", "Expecting value at column 12")`.

    Attributes:
        where: File and line.
        reason: Short and of few kinds; rows are counted by it.
        detail: What this row has in particular.
    """

    def __init__(self, where: str, reason: str, detail: str = "") -> None:
        super().__init__(where, reason, detail)  # so that it survives the way between processes
        self.where, self.reason, self.detail = where, reason, detail

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f": {self.detail}" if self.detail else "")


class UnusableRow(RowError):
    """One row is as it should be, but nothing can be learnt from it: counted, never an error."""


class RunError(RlhfRayError):
    """The job started and cannot go on."""


class TrainingStopped(RunError):
    """Training met a rule that ends it; the same again would most likely meet it again."""


class Disagreement(RunError):
    """Roles compute different numbers from the same weights, and one of them is wrong.

    Attributes:
        roles: Theirs.
    """

    roles: Sequence[str] = ()

    @classmethod
    def between(cls, *roles: str, message: str) -> Disagreement:
        """One of these roles."""
        disagreement = cls(message)
        disagreement.roles = roles
        return disagreement


class ActorDied(RunError):
    """A rank, a replica or another actor is gone; whoever waited for it gets this.

    Attributes:
        role: Of the actor; empty where it is none of a role's.
        index: Of the rank or replica in its role.
        operation: What it was asked.
        age_s: Since when.
        incarnation: Of the role's actors; None where whoever waited does not know it.
    """

    role: str
    index: int
    operation: str
    age_s: float
    incarnation: int | None = None

    @classmethod
    def of(cls, message: str, *, role: str, index: int, operation: str, age_s: float) -> ActorDied:
        """One with these attributes, which travels between processes with them."""
        died = cls(message)
        died.role, died.index, died.operation, died.age_s = role, index, operation, age_s
        return died


# What a user's code did to a group: no answer in time, the end of its process, an error.
FailureCause: TypeAlias = Literal["hung", "crashed", "raised"]
FAILURE_CAUSES: tuple[FailureCause, ...] = get_args(FailureCause)


class GroupFailed(RunError):
    """A user's code failed at one of a group's samples; others are not concerned.

    That is a failure with a cause, never a score of 0.

    Attributes:
        cause: What it did.
    """

    cause: FailureCause = "raised"

    @classmethod
    def of(cls, message: str, *, cause: FailureCause) -> GroupFailed:
        """One that travels between processes with its cause."""
        failed = cls(message)
        failed.cause = cause
        return failed


class StateLost(RunError):
    """Actors died with a state that others must bring back: weights that were trained, say.

    They are started again, as a job starts them.

    Attributes:
        role: Theirs.
        met_s: When the death was met, by this process's monotonic clock.
    """

    role: str
    met_s: float

    @classmethod
    def of(cls, died: ActorDied, *, met_s: float) -> StateLost:
        """By this death."""
        lost = cls.named(died.role, str(died))
        lost.met_s = met_s
        return lost

    @classmethod
    def named(cls, role: str, why: str) -> StateLost:
        """One of a role, and why; it is met now."""
        lost = cls(f"{role}: {why}")
        lost.role, lost.met_s = role, time.monotonic()
        return lost


class ResultsLost(StateLost):
    """What roles have made of a step is gone with the node that held it: rollouts, say.

    The roles are as they were, but for those on that node.

    Attributes:
        late: Positions of the actors that had not answered when another one met it.
    """

    late: Sequence[int] = ()


def short(value: Any) -> str:
    """A value as an error shows it, however long or deep it is."""
    if isinstance(value, str):
        return repr(value[:60]) + ("..." if len(value) > 60 else "")
    if isinstance(value, list | dict) and value:
        return f"{type(value).__name__} of {len(value)}"
    return repr(value)[:80]


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which keys have another value than they had, and what both are, in words."""
    return [
        f"{key} was {saved.get(key)!r}, is {now.get(key)!r}"
        for key in sorted({*saved, *now})
        if saved.get(key) != now.get(key)
    ]
