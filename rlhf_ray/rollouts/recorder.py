"""Between the feed and the journal: groups to their records, and back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from rlhf_ray.deadlines import in_thread
from rlhf_ray.errors import FailureCause
from rlhf_ray.roles.groups import RolloutGroup, ScoredGroup
from rlhf_ray.roles.protocols import RolloutStore
from rlhf_ray.rollouts.journal import Journal, Replay
from rlhf_ray.rollouts.records import RecordedGroup
from rlhf_ray.types import Prompt

T = TypeVar("T")


@dataclass(eq=False)
class Recorder:
    """Writes what is decided to the journal, and gives back what an earlier process decided.

    Attributes:
        journal: Of the run.
        store: Where rollouts lie.
        timeout_s: Deadline of a read or write.
        left: What earlier processes have decided, once it is read.
    """

    journal: Journal
    store: RolloutStore
    timeout_s: float
    left: Replay = field(default_factory=lambda: Replay({}), init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    async def read(self, frontier: int) -> None:
        """Find what earlier processes have decided about draws from `frontier` on.

        Raises:
            ConfigError: They were those of another run.
        """
        read = partial(self.journal.replay, frontier)
        self.left = await self._in_thread(read, f"all of it, from draw {frontier} on")

    def __contains__(self, draw: int) -> bool:
        """Whether an earlier process decided about the draw."""
        return draw in self.left.draws

    def forget(self, draws: Iterable[int]) -> None:
        """Draws that are sampled again, whatever was decided about them."""
        self.left.discard(draws)

    def failed(self, draw: int) -> tuple[FailureCause, ...]:
        """Why an earlier process could not score a draw, which is sampled again; else empty."""
        return self.left.skipped.get(draw, ())

    async def record(self, scored: ScoredGroup, *, accepted: bool) -> None:
        """Append what was decided about a group."""
        group = scored.group
        rollouts = await self.store.fetch([group]) if accepted and group.summaries_G else [[]]
        record = RecordedGroup(
            draw=group.draw,
            prompt_id=group.prompt.prompt_id,
            is_accepted=accepted,
            scores_G=scored.scores_G,
            summaries_G=group.summaries_G,
            rollouts_G=tuple(rollouts[0]),
            unsampled=group.failed,
            failed=scored.failed,
            is_skipped=scored.is_skipped,
        )
        await self._in_thread(partial(self.journal.append, record), f"draw {group.draw}")

    async def sync(self) -> None:
        """Bring to the disk what was appended."""
        await self._in_thread(self.journal.sync, "what was appended")

    async def next_segment(self, frontier: int) -> None:
        """End the segment, at a checkpoint; remove those that lie before a draw as a whole."""

        def end() -> None:
            self.journal.end_segment()
            self.journal.prune(frontier)

        await self._in_thread(end, f"what lies before draw {frontier}")

    async def replay(self, draw: int, prompt: Prompt) -> tuple[ScoredGroup, bool]:
        """A group as it was decided, and whether it was accepted.

        The rollouts of one that was not are nowhere.
        """
        found = await self._in_thread(partial(self.left.take, draw, prompt), f"draw {draw}")
        group = RolloutGroup(
            prompt=prompt,
            draw=draw,
            summaries_G=found.summaries_G,
            rollouts=self.store.put(found.rollouts_G) if found.rollouts_G else None,
            failed=found.unsampled,
        )
        scored = ScoredGroup(
            group=group,
            scores_G=found.scores_G,
            failed=found.failed,
            is_skipped=found.is_skipped,
        )
        return scored, found.is_accepted

    async def _in_thread(self, call: Callable[[], T], what: str) -> T:
        return await in_thread(
            call,
            timeout_s=self.timeout_s,
            actor="the driver",
            operation=f"the journal of rollouts ({what})",
            lock=self._lock,
        )
