"""What is wrong with a configuration: all of it, in one message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rlhf_ray.errors import ConfigError

# Keys from the root; an index into a list is a key as well: ("reward", "functions", "0", "path").
KeyPath: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing to change.

    Attributes:
        path: The key, empty where no single key is to blame.
        message: What is wrong, what was given, what is allowed.
        where: The line of the file or the option that gave the value, where known.
    """

    path: KeyPath
    message: str
    where: str = ""

    def __str__(self) -> str:
        """`policy.optim.lr (line 12): must be a number above 0, got -1`."""
        where = f" ({self.where})" if self.where else ""
        return f"{'.'.join(self.path)}{where}: {self.message}" if self.path else self.message


def raise_for(problems: Sequence[Problem], *, source: str) -> None:
    """Raise a `ConfigError` that lists every problem; do nothing where there is none."""
    if not problems:
        return
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise ConfigError("\n".join([f"{source}: {count}", *(f"  {problem}" for problem in problems)]))
