"""A driver that tells what it does and kills itself at a place: `killed_driver.py LOG PLACE N ...`.

The rest of the line is `rlhf-ray`'s. At the N-th time that the driver is at PLACE it is gone, as by
the kernel's hand; `-` is nowhere. LOG gets a line of JSON for each prompt that is asked for, each
step that is taken, the digest of the policy's weights after each update, and each step's metrics.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rlhf_ray.loops.online as online
import rlhf_ray.rollouts.journal as journal
from actors.pool.pool import Pool
from actors.ranks.policy import PolicyGroup
from actors.roles.job_pool import JobPool
from launch import cli
from rlhf_ray.loops.checkpoints import CheckpointStore
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.metrics.log import MetricsLog
from rlhf_ray.rollouts.feed import Feed

# Of an update, and of a publication; both take longer.
AMID_S = 0.02
# By then a commit that goes on beside the run has the next step beside it.
BESIDE_S = 0.5


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Counted:
    """Kills at the n-th time."""

    def __init__(self, number: int) -> None:
        self.left = number

    def is_now(self) -> bool:
        self.left -= 1
        return self.left == 0


def before(owner: Any, name: str, number: int, *, wait_s: float = 0.0) -> None:
    """Kill before the n-th call of a function or coroutine."""
    original, counted = getattr(owner, name), Counted(number)

    def patched(*arguments: Any, **keywords: Any) -> Any:
        if counted.is_now():
            time.sleep(wait_s)
            kill()
        return original(*arguments, **keywords)

    setattr(owner, name, patched)


def amid(owner: Any, name: str, number: int) -> None:
    """Kill while the n-th call of a coroutine goes on."""
    original, counted = getattr(owner, name), Counted(number)

    async def patched(*arguments: Any, **keywords: Any) -> Any:
        if not counted.is_now():
            return await original(*arguments, **keywords)
        call = asyncio.create_task(original(*arguments, **keywords))
        await asyncio.wait([call], timeout=AMID_S)
        kill()

    setattr(owner, name, patched)


def after(owner: Any, name: str, number: int, *, wait_s: float = 0.0) -> None:
    """Kill when the n-th call of a function has returned."""
    original, counted = getattr(owner, name), Counted(number)

    def patched(*arguments: Any, **keywords: Any) -> Any:
        answer = original(*arguments, **keywords)
        if counted.is_now():
            time.sleep(wait_s)
            kill()
        return answer

    setattr(owner, name, patched)


def torn(number: int) -> None:
    """Kill amid the n-th record of the journal."""
    original, counted = journal._write, Counted(number)

    def patched(file: Any, data: bytes) -> None:
        if counted.is_now():
            original(file, data[: len(data) // 2])
            kill()
        original(file, data)

    journal._write = patched


# By name, from a run's start to its end.
PLACES: dict[str, Callable[[int], None]] = {
    "load": lambda n: amid(JobPool, "load", n),
    "publish": lambda n: amid(online, "publish", n),
    "request": lambda n: before(Feed, "_request", n),
    "generate": lambda n: before(Feed, "_go_on", n),
    "score": lambda n: amid(Feed, "_score", n),
    "record": torn,
    "take": lambda n: after(Feed, "_require_enough", n),
    "update": lambda n: amid(OnlineLoop, "_update", n),
    "log": lambda n: after(MetricsLog, "log", n),
    "save": lambda n: amid(PolicyGroup, "save", n),
    "prune": lambda n: before(journal.Journal, "prune", n),
    "seal": lambda n: after(CheckpointStore, "_seal", n, wait_s=BESIDE_S),
    "name": lambda n: before(CheckpointStore, "_prune", n, wait_s=BESIDE_S),
    "export": lambda n: amid(Pool, "finish", n),
}


class Log:
    """What the driver did, in a file that outlives it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def tell(self, **what: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(what) + "\n")

    def listen(self) -> None:
        """Have the driver tell what it does."""
        request, take, log = Feed._request, Feed.take, MetricsLog.log
        update = OnlineLoop._update

        def asked(feed: Feed, draw: int) -> Any:
            self.tell(run=name_of(feed), asked=draw)
            return request(feed, draw)

        async def taken(feed: Feed, step: int, clock: Any) -> Any:
            collected = await take(feed, step, clock)
            sampled, kept = ([g.draw for g in of] for of in (collected.sampled, collected.groups))
            self.tell(run=name_of(feed), step=step, sampled=sampled, kept=kept)
            return collected

        async def updated(loop: Any, step: int, *arguments: Any) -> Any:
            metrics = await update(loop, step, *arguments)
            weights = await weights_digest(loop.roles.policy.actors)
            self.tell(run=name_of(loop), step=step, weights=weights)
            return metrics

        def logged(log_: MetricsLog, step: int, metrics: Any, *more: Any) -> None:
            log(log_, step, metrics, *more)
            self.tell(step=step, metrics=dict(metrics))

        for owner, name, patched in (
            (Feed, "_request", asked),
            (Feed, "take", taken),
            (OnlineLoop, "_update", updated),
            (MetricsLog, "log", logged),
        ):
            setattr(owner, name, patched)


def name_of(of_run: Any) -> str:
    return Path(of_run.config.run_dir).name


async def weights_digest(policy: Any) -> str:
    """Of every bit of the first rank's weights."""

    def digest(rank: Any) -> str:
        import hashlib

        found = hashlib.sha256()
        for name, weight in sorted(rank.learner.engine.module.named_parameters()):
            found.update(name.encode() + weight.detach().cpu().numpy().tobytes())
        return found.hexdigest()

    [of_rank] = await policy.answers(
        [policy.actors[0].__ray_call__.remote(digest)], "digest", timeout_s=60.0, ranks=[0]
    )
    return str(of_rank)


def digests_of(run_dir: Path) -> dict[str, str]:
    """Of the files of a run's result."""
    files = sorted(path for path in (run_dir / "export").rglob("*") if path.is_file())
    return {
        str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def main(log: str, place: str, number: str, arguments: Sequence[str]) -> int:
    Log(Path(log)).listen()
    if place != "-":
        PLACES[place](int(number))
    return cli.main(arguments)


if __name__ == "__main__":
    log, place, number, *arguments = sys.argv[1:]
    sys.exit(main(log, place, number, arguments))
