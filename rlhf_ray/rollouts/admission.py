"""Which draws are sampled when, and which of them make a step: decisions alone, no I/O.

A *draw* is a position in the order of the data, never used twice: one prompt with its samples. A
step takes the accepted draws in the order of the data, whatever the order in which they were
decided. So the rows of every step are a function of what was accepted, a run that replays the same
decisions trains the same steps, and how old a draw is when it is trained has a bound.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepDraws:
    """What one step is made of.

    Attributes:
        accepted: Draws that are trained, in order; fewer than the step wants where the rounds of
            dynamic sampling are used up.
        rejected: Draws that were passed over.
    """

    accepted: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        """Both, in order."""
        return tuple(sorted((*self.accepted, *self.rejected)))


class Admission:
    """Admits draws so far ahead of the steps that none is older than allowed when it is trained.

    A step begins with as many draws as it wants groups, and each further round of it with as many
    as are still missing: nothing is sampled that the step does not need. After `max_rounds` it is
    made of what there is.

    The end of a step is where `p` stays in `p(1) = start + B, p(k + 1) = start + B + rejected in
    [start, p(k))`, or `p(max_rounds)`. It comes the sooner the fewer are rejected. So a draw stands
    at the latest in the step that it has if all undecided ones before it are accepted, and is
    admitted if that step is at most `max_staleness` behind the one that the weights are for. No
    counter has to be saved: position and number of steps are all.

    With `max_staleness` 0 draws are admitted in waves, while nothing is sampled: the same requests
    then share a batch in the engines, which decides the last bits of their log-probabilities.
    """

    def __init__(
        self,
        *,
        groups_per_step: int,
        max_rounds: int = 1,
        max_staleness: int = 0,
        frontier: int = 0,
        steps: int = 0,
        last_step: int | None = None,
    ) -> None:
        """Begin behind `steps` steps, of which the weights know.

        Args:
            groups_per_step: B, at least 1.
            max_rounds: Rounds of a step, the first one included, at least 1; one is enough where
                nothing is rejected.
            max_staleness: Publications that may pass between the weights that sampled a draw first
                and those that it is trained on; at least 0.
            frontier: The first draw that no step has taken.
            steps: Steps that were taken.
            last_step: Nothing is admitted for steps behind it; None for no end.

        Raises:
            ValueError: A number is too small.
        """
        for name, value, least in (
            ("groups_per_step", groups_per_step, 1),
            ("max_rounds", max_rounds, 1),
            ("max_staleness", max_staleness, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.groups_per_step, self.max_rounds = groups_per_step, max_rounds
        self.max_staleness = max_staleness
        self.frontier, self.steps, self.version = frontier, steps, steps
        self.last_step = last_step
        self.running: set[int] = set()
        self._next = frontier
        self._lost: set[int] = set()
        # All draws before it are decided, and so are these behind it.
        self._first_undecided = frontier
        self._decided: set[int] = set()
        # Of all that are decided and not taken; in order.
        self._rejected: list[int] = []

    def admit(self) -> list[int]:
        """Draws to sample now, in order; those that were lost come before new ones."""
        if self.running and not self.max_staleness:
            return []
        until = self.version + self.max_staleness + 1
        if self.last_step is not None:
            until = min(until, self.last_step)
        end = self.frontier
        for _ in range(until - self.steps):
            end = self._end_of_step(end)
        draws = [*sorted(self._lost), *range(self._next, end)]
        self._lost.clear()
        self.running.update(draws)
        self._next = max(self._next, end)
        return draws

    def decided(self, draw: int, *, accepted: bool) -> None:
        """A draw that was admitted is sampled and scored, and is trained or passed over."""
        self._leave(draw)
        if not accepted:
            insort(self._rejected, draw)
        self._decided.add(draw)
        while self._first_undecided in self._decided:
            self._decided.remove(self._first_undecided)
            self._first_undecided += 1

    def lost(self, draw: int) -> None:
        """A draw that was admitted will not be answered; it is admitted again."""
        self._leave(draw)
        self._lost.add(draw)

    def step_draws(self) -> StepDraws | None:
        """What the next step is made of, once all of it is decided."""
        end = self._end_of_step(self.frontier)
        if self._first_undecided < end:
            return None
        rejected = self._rejected[: bisect_left(self._rejected, end)]
        left_out = set(rejected)
        accepted = [draw for draw in range(self.frontier, end) if draw not in left_out]
        return StepDraws(accepted=tuple(accepted), rejected=tuple(rejected))

    def consume(self) -> StepDraws:
        """Take the next step, which is known."""
        step = self.step_draws()
        assert step is not None, f"draws of step {self.steps + 1} are not decided"
        del self._rejected[: len(step.rejected)]
        self.frontier, self.steps = step.all[-1] + 1, self.steps + 1
        return step

    def moved_to(self, version: int) -> None:
        """The engines have the weights that so many steps made, at most those that were taken."""
        assert self.version <= version <= self.steps, (self.version, version, self.steps)
        self.version = version

    def newest_version(self, draw: int) -> int:
        """Of the weights that may sample a draw: those before the first step that it may be in."""
        return self.steps + (draw - self.frontier) // (self.groups_per_step * self.max_rounds)

    def _leave(self, draw: int) -> None:
        assert draw in self.running, f"draw {draw} is not being sampled"
        self.running.remove(draw)

    def _end_of_step(self, start: int) -> int:
        """The draw behind the step that begins at `start`, if all undecided ones are accepted."""
        first_end = end = start + self.groups_per_step
        for _ in range(self.max_rounds - 1):
            end = first_end + bisect_left(self._rejected, end) - bisect_left(self._rejected, start)
        return end
