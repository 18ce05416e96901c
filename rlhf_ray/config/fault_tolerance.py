"""Deadlines, and what becomes of a run in which something fails."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from rlhf_ray.config.base import Config, NonNegativeFloat, NonNegativeInt, Share


class TimeoutConfig(Config):
    """Deadlines of every wait, in seconds.

    Attributes:
        call_s: Of a call to an actor: a pass over its rows, or a group with all of its turns.
        heartbeat_s: How long the event loop of a run with `--restarts` may stand still; then it is
            taken to hang, killed and started again.
        stop_s: How long a run that is stopped may take to finish and save its step; then it ends as
            it is. Of a submitted job it is what Ray allows less 2 seconds, if that is less.
        health_s: Between two questions to every actor whether it is alive.
        hang_s: How long an actor may leave such a question open; then it is killed, and started
            again as one that died. A long import may keep it from answering for a while. And how
            long an engine may be behind another amid a publication through the hosts' memory.
    """

    place_s: PositiveFloat = 120.0
    start_s: PositiveFloat = 900.0
    call_s: PositiveFloat = 1800.0
    publish_s: PositiveFloat = 600.0
    reward_s: PositiveFloat = 600.0
    heartbeat_s: PositiveFloat = 300.0
    stop_s: NonNegativeFloat = 1800.0
    health_s: PositiveFloat = 5.0
    hang_s: PositiveFloat = 60.0


class ActorFailureConfig(Config):
    """How often the actors of a role that died are started again.

    Attributes:
        restarts: Of each role, before its next death ends the run; 0 ends the run at once. Of each
            engine by itself: the run goes on without it, and ends with the last one. And how often
            a run goes back at one step as results of roles are lost with a node.
        backoff_s: Between a death and the second restart, and twice as long before each one after
            that, up to 64 times as long; the first one comes at once.
        stable_s: A role that has served for so long has all of its restarts again. That counts from
            when it was ready to when it was asked what it died at: neither a start nor a call that
            hangs is service.
    """

    restarts: NonNegativeInt = 5
    backoff_s: NonNegativeFloat = 5.0
    stable_s: PositiveFloat = 600.0


class RowFailureConfig(Config):
    """What becomes of a group at one of whose samples a user's code hangs, crashes or raises.

    Attributes:
        retries: Further tries of the group.
        then: `skip` leaves the group out: it has no score, is counted and recorded, and no resumed
            run tries it again. `stop` ends the run.
        most_skipped_share: Of the last 1,000 groups; of the first 100 as many as of 100. More end
            the run.
    """

    retries: NonNegativeInt = 2
    then: Literal["skip", "stop"] = "skip"
    most_skipped_share: Share = 0.02


class FailureConfig(Config):
    """What becomes of a run in which something fails."""

    actor: ActorFailureConfig = ActorFailureConfig()
    row: RowFailureConfig = RowFailureConfig()
