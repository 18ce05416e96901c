"""What a check is given: where it runs, how large, and what it shares with its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.gpu_check.machine import Card
from benchmarks.gpu_check.scale import Scale

Shared = TypeVar("Shared")


@dataclass(kw_only=True)
class Setting:
    """Of the checks of one process.

    Attributes:
        cards: That the process sees, as `cuda:0` and on; none in a rehearsal.
        folder: For what a check writes.
        tell: Called with events, for whoever watches the process.
    """

    scale: Scale
    cards: tuple[Card, ...]
    folder: Path
    tell: Callable[..., None] = lambda **event: None
    _open: dict[Any, Any] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def shared(self, opener: Callable[[Setting], AbstractContextManager[Shared]]) -> Shared:
        """What `opener` opens, once for all checks of the process; closed when these are done.

        Raises:
            RuntimeError: It could not be opened for an earlier check.
        """
        if opener not in self._open:
            self._open[opener] = None
            self.tell(event="opening")
            try:
                self._open[opener] = self._stack.enter_context(opener(self))
            finally:
                self.tell(event="opened")
        opened: Shared | None = self._open[opener]
        if opened is None:
            raise RuntimeError(f"{opener.__name__} failed for an earlier check of this process")
        return opened

    def close(self) -> None:
        """Close what is shared."""
        self._stack.close()
