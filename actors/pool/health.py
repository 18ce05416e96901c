"""Whether an actor is alive, by when it was asked and when it answered: decisions alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Health:
    """One actor's. Until it has answered once it is starting, which has a deadline of its own.

    Attributes:
        hang_s: How long a question may stay open.
        suspect_s: After so long it gets no new work, where its role knows whom else to give it to.
    """

    hang_s: float
    suspect_s: float
    clock: Callable[[], float]
    _asked_s: float | None = field(default=None, init=False)
    _has_answered: bool = field(default=False, init=False)

    def asked(self) -> None:
        """It is asked now."""
        self._asked_s = self.clock()

    def answered(self) -> None:
        """It has answered what was open."""
        self._asked_s, self._has_answered = None, True

    @property
    def open_s(self) -> float:
        """For how long it has not answered; 0 where nothing is open."""
        return 0.0 if self._asked_s is None else self.clock() - self._asked_s

    @property
    def is_suspect(self) -> bool:
        """Whether it takes longer than one that is well."""
        return self._has_answered and self.open_s > self.suspect_s

    @property
    def hangs(self) -> bool:
        """Whether it is of no use any more, though nobody has noticed its death."""
        return self._has_answered and self.open_s > self.hang_s
