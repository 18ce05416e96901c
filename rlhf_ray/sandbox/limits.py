"""What code in the sandbox may take, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

# It ended by itself, was ended for time or memory, or by a signal (a crash, the CPU limit).
Ending: TypeAlias = Literal["exit", "timeout", "memory", "signal"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """For one run.

    Attributes:
        wall_s: Of time.
        cpu_s: Of a single process's processor time.
        memory_mb: Of all processes together; a single one cannot allocate more.
        processes: At a time, threads included.
        disk_mb: Of all files together; they lie in memory.
        output_bytes: Of stdout and of stderr; what is beyond is dropped.

    Raises:
        ValueError: One of them is not positive.
    """

    wall_s: float = 10.0
    cpu_s: int = 10
    memory_mb: int = 512
    processes: int = 32
    disk_mb: int = 32
    output_bytes: int = 65_536

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a run.

    Attributes:
        ending: How it ended.
        status: The exit status, or the signal's number; None where it was ended from outside.
        stdout: What it wrote there, up to the limit.
        stderr: The same.
    """

    ending: Ending
    status: int | None
    stdout: str
    stderr: str

    @property
    def is_success(self) -> bool:
        """Whether it ended by itself, without an error."""
        return self.ending == "exit" and self.status == 0
