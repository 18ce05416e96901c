"""A role's process is killed, or stopped, amid a phase of a run that goes on in this process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from actors.cluster.role_spec import RoleActor
from actors.engines.replica_set import ReplicaSet
from actors.pool.pool import Pool
from actors.ranks.group import TrainedGroup
from actors.ranks.policy import PolicyGroup
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.loops.supervised import SupervisedLoop

# Of calls that take longer.
AMID_S = 0.02

# Where a phase is: the coroutines that are it.
PHASES: Mapping[str, tuple[Any, str]] = {
    "start": (Pool, "load"),
    "generate": (ReplicaSet, "_answer"),
    "evaluate": (Evaluation, "run"),
    "score": (OnlineLoop, "_score"),
    "update": (OnlineLoop, "_update"),
    "publish": (PolicyGroup, "publish"),
    "checkpoint": (TrainedGroup, "save"),
    "export": (Pool, "finish"),
    "step": (SupervisedLoop, "_step"),
}


@dataclass(frozen=True, kw_only=True)
class Death:
    """One cell of the table.

    Attributes:
        role: As the pool calls it.
        rank: Of the actor in its role.
        phase: One of `PHASES`.
        number: At which time that the run is in that phase, from 1.
        by: The signal.
    """

    role: str
    phase: str
    number: int = 2
    rank: int = 0
    by: signal.Signals = signal.SIGKILL

    def __str__(self) -> str:
        rank = f"/{self.rank}" if self.rank else ""
        return f"{self.role}{rank} in {self.phase} by {self.by.name}"

    @contextmanager
    def comes(self, pool: Pool) -> Iterator[Callable[[], bool]]:
        """While this is open, a run on the pool meets it once; yields whether it has."""
        owner, method = PHASES[self.phase]
        original = getattr(owner, method)
        num_calls, pid = 0, 0

        async def patched(*arguments: Any, **keywords: Any) -> Any:
            nonlocal num_calls, pid
            num_calls += 1
            if num_calls != self.number:
                return await original(*arguments, **keywords)
            role = pool.state.roles[self.role]
            ask = role.call(RoleActor.process_id, timeout_s=60.0, only=self.rank)
            [pid] = await ask()
            call = asyncio.ensure_future(original(*arguments, **keywords))
            await asyncio.wait([call], timeout=AMID_S)
            os.kill(pid, self.by)
            return await call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, method, patched)
            yield lambda: pid != 0
