"""What can be wrong with data, and which of it a job may survive."""

from __future__ import annotations

from typing import Any

from rlhf_ray.errors import ConfigError


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


def short(value: Any) -> str:
    """A value as an error shows it, however long or deep it is."""
    if isinstance(value, str):
        return repr(value[:60]) + ("..." if len(value) > 60 else "")
    if isinstance(value, list | dict) and value:
        return f"{type(value).__name__} of {len(value)}"
    return repr(value)[:80]
