"""In which state each engine of the rollout role is, and what may follow: decisions alone, no I/O.

    starting -> stale -> updating -> serving <-> suspect
        ^          ^         |          |
        |          +---------+----------+   (spared, or all weights are forgotten)
    dead <- any of these; dead or starting -> retired -> starting

Nothing leads from dead to serving but new weights that the new engine has acknowledged, and a probe
in which it agreed with the trainer. What is left amid an update is dead, unless the engine itself
says that none is under way in it: vLLM skips layers that are loaded by half in the next update
(`model_loader/reload/layerwise.py`), and would mix old weights with new ones in silence.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from actors.engines.samples import NO_VERSION


class State(StrEnum):
    """Of a replica."""

    STARTING = "starting"  # a new process is on its way
    STALE = "stale"  # it runs, and nobody knows its weights
    UPDATING = "updating"  # new weights are under way to it, or wait for the probe
    SERVING = "serving"
    SUSPECT = "suspect"  # it does not say that it is alive: it keeps its work and gets no new one
    DEAD = "dead"
    RETIRED = "retired"  # nobody comes in its place, for now


# Whose process can be asked something.
ALIVE = (State.STALE, State.UPDATING, State.SERVING, State.SUSPECT)
# Whose weights are known.
KNOWN = (State.SERVING, State.SUSPECT)


@dataclass
class Replica:
    """One engine.

    Attributes:
        version: Of its weights, once it has acknowledged them; `NO_VERSION` for unknown ones.
        since_s: When it came into its state, by the fleet's clock.
    """

    state: State = State.STALE
    version: int = NO_VERSION
    since_s: float = 0.0


class Fleet:
    """All replicas of the role, by their numbers.

    Attributes:
        replicas: In order.
    """

    def __init__(self, num_replicas: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """All run, with weights that nobody knows: of a job before, or their own."""
        self.clock = clock
        self.replicas = [Replica(since_s=clock()) for _ in range(num_replicas)]

    @classmethod
    def with_own_weights(cls, num_replicas: int) -> Fleet:
        """All serve with what they were started with, for whoever has no policy."""
        fleet = cls(num_replicas)
        for replica in fleet.replicas:
            replica.state = State.SERVING
        return fleet

    def those(self, *states: State) -> list[int]:
        """The replicas in some states."""
        return [number for number, one in enumerate(self.replicas) if one.state in states]

    def state(self, replica: int) -> State:
        """Of one."""
        return self.replicas[replica].state

    def version(self, replica: int) -> int:
        """Of its weights."""
        return self.replicas[replica].version

    @property
    def newest_version(self) -> int:
        """Of the weights that samples come from."""
        versions = [one.version for one in self.replicas if one.state in KNOWN]
        return max(versions, default=NO_VERSION)

    def lacking(self, version: int, *, exactly: bool = False) -> list[int]:
        """Those that a publication of `version` goes to.

        Newer weights than these stay where they are, unless it is to be `exactly` these: a run that
        goes back does steps again whose weights are published already.
        """

        def lacks(one: Replica) -> bool:
            if one.state in KNOWN:
                return one.version != version if exactly else one.version < version
            if one.state == State.UPDATING:  # nobody has probed what it acknowledged
                return one.version not in (NO_VERSION, version)
            return one.state == State.STALE

        return [number for number, one in enumerate(self.replicas) if lacks(one)]

    def having(self, version: int) -> list[int]:
        """Those that have acknowledged `version`, whether they were probed or not."""
        having = self.those(*KNOWN, State.UPDATING)
        return [replica for replica in having if self.replicas[replica].version == version]

    # What happens to them.

    def updates(self, replica: int) -> None:
        """A publication begins that names it."""
        allowed = (State.UPDATING,) if self.version(replica) != NO_VERSION else (State.STALE,)
        self._move(replica, State.UPDATING, *KNOWN, *allowed)
        self.replicas[replica].version = NO_VERSION

    def acknowledged(self, replica: int, version: int) -> None:
        """It has all weights of a version, as it says."""
        assert self.state(replica) == State.UPDATING, self.replicas[replica]
        self.replicas[replica].version = version

    def agreed(self, replica: int) -> None:
        """It has acknowledged a version, and the probe found the same as the trainer."""
        assert self.replicas[replica].version != NO_VERSION, self.replicas[replica]
        self._move(replica, State.SERVING, State.UPDATING)

    def spared(self, replica: int) -> None:
        """A publication broke off, and no update is under way in it: it says so itself."""
        self._move(replica, State.STALE, State.UPDATING)
        self.replicas[replica].version = NO_VERSION

    def forget(self) -> None:
        """Their weights are dropped, or nobody relies on them any more."""
        for replica, one in enumerate(self.replicas):
            if one.version != NO_VERSION or one.state in KNOWN:
                self._move(replica, State.STALE, *KNOWN, State.UPDATING)
                one.version = NO_VERSION

    def suspected(self, replica: int) -> None:
        """It has left questions open whether it is alive."""
        if self.state(replica) == State.SERVING:
            self._move(replica, State.SUSPECT, State.SERVING)

    def answered(self, replica: int) -> None:
        """It is alive."""
        if self.state(replica) == State.SUSPECT:
            self._move(replica, State.SERVING, State.SUSPECT)

    def died(self, replica: int) -> bool:
        """Its process is gone, or is of no use any more; False where that is known."""
        if self.state(replica) not in ALIVE:
            return False
        self._move(replica, State.DEAD, *ALIVE)
        self.replicas[replica].version = NO_VERSION
        return True

    def starts(self, replica: int) -> None:
        """A new process comes in its place."""
        self._move(replica, State.STARTING, State.DEAD, State.RETIRED)

    def started(self, replica: int) -> None:
        """The new process runs, with weights of its own."""
        self._move(replica, State.STALE, State.STARTING)

    def retired(self, replica: int) -> None:
        """No new process comes."""
        self._move(replica, State.RETIRED, State.DEAD, State.STARTING)

    def _move(self, replica: int, to: State, *allowed: State) -> None:
        one = self.replicas[replica]
        assert one.state in allowed, f"replica {replica} is {one.state}, and cannot become {to}"
        one.state, one.since_s = to, self.clock()
