"""One kind of job as a record, and the course that all kinds take."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

from rlhf_ray.config.jobs import AnyJob
from rlhf_ray.data.rows.streaming import RowStream
from rlhf_ray.jobs.pool import Pool
from rlhf_ray.jobs.rows import JobData, JobRows
from rlhf_ray.loops.checkpoints import Checkpoint
from rlhf_ray.loops.setup import checkpoint_to_resume
from rlhf_ray.loops.stopping import Stop
from rlhf_ray.metrics import MetricsLog, open_metrics
from rlhf_ray.metrics.usage import Usage
from rlhf_ray.specs import Spec

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=AnyJob)
D = TypeVar("D", bound=JobData)
R = TypeVar("R")
T = TypeVar("T")


class Loop(Protocol):
    """The steps of a run."""

    async def run(self, checkpoint: Checkpoint | None, stop: Stop | None = None) -> None:
        """From the start or a checkpoint to the last step, or until it is asked to stop."""

    async def with_result(self, call: Callable[[], Awaitable[T]]) -> T:
        """What comes of a call that takes the trained roles as the last step left them."""


def _go_on(config: Any, data: Any, checkpoint: Checkpoint | None) -> None:
    """What `checkpoint_to_resume` asks is all."""


async def _nothing_more(config: Any, data: Any, roles: Any) -> None:
    """The export is all."""


@dataclass(frozen=True, kw_only=True)
class Job(Generic[C, D, R]):
    """One kind of job.

    Attributes:
        config: The class of its configuration, which has its name and the role that it trains.
        rows: Its data sets, from configuration and tokenizer.
        load: Reads what it trains on, before anything starts.
        specs: What each role is made from, by the roles' names.
        roles: Loads the roles of a pool that has started them, as far as the loop takes them.
        loop: Puts the loop together.
        at_end: What follows the export.
        check_folder: Whether a run may go on from what its folder holds beside a checkpoint.
        marked: What is marked in its rows where they are shown; empty for nothing.
        headline: The metrics that tell most; the first that a run logged stands for it.
    """

    config: type[C]
    rows: Callable[[C, Any], JobRows]
    load: Callable[[C], D]
    specs: Callable[[C, D], Mapping[str, Spec]]
    roles: Callable[[C, D, Mapping[str, Spec], Pool], Awaitable[R]]
    loop: Callable[[C, D, R, MetricsLog, Usage], Loop]
    at_end: Callable[[C, D, R], Awaitable[None]] = _nothing_more
    check_folder: Callable[[C, D, Checkpoint | None], None] = _go_on
    marked: str = ""
    headline: tuple[str, ...]

    def prepare(self, config: C) -> PreparedJob[C, D]:
        """Read a job's data and look for a checkpoint that it may go on from.

        Raises:
            ConfigError: The data cannot be used, or the job cannot go on in its folder.
        """
        data = self.load(config)
        rows = data.trained_rows
        if not isinstance(rows, RowStream):
            config = cast(C, config.for_rows(len(rows)))
        checkpoint = checkpoint_to_resume(config, rows)
        self.check_folder(config, data, checkpoint)
        return PreparedJob(job=self, config=config, data=data, checkpoint=checkpoint)

    async def start(self, config: C, data: D, pool: Pool) -> R:
        """Start the roles and load their models.

        Raises:
            ConfigError: The pool or a model does not fit the configuration.
            RunError: An actor died or missed its deadline.
        """
        started_s = time.monotonic()
        data.keep_tokenizer(config.tokenizer_path)
        await pool.start()
        roles = await self.roles(config, data, self.specs(config, data), pool)
        logger.info("all roles are ready after %.0f s", time.monotonic() - started_s)
        return roles


@dataclass(frozen=True, kw_only=True)
class PreparedJob(Generic[C, D]):
    """A job that nothing in its configuration, its data or its folder refuses.

    Nothing is written so far.

    Attributes:
        config: Of the job, its steps counted.
        data: What it trains on.
        checkpoint: What it goes on from; None for a start.
    """

    job: Job[C, D, Any]
    config: C
    data: D
    checkpoint: Checkpoint | None

    async def run(self, pool: Pool, stop: Stop | None = None) -> None:
        """Run the loop on a pool, from the checkpoint if there is one, and export.

        Raises:
            KeyboardInterrupt: The loop was asked to stop, and has.
            ConfigError: The pool or a model does not fit the configuration.
            RunError: A role failed or the run diverged.
        """
        job, config, data, checkpoint = self.job, self.config, self.data, self.checkpoint
        roles = await job.start(config, data, pool)
        resumed_step = None if checkpoint is None else checkpoint.step
        if checkpoint is not None:
            logger.info("resumed after step %d, from %s", checkpoint.step, checkpoint.folder)
        with open_metrics(
            config, job=config.job, resumed_step=resumed_step, beside=pool.sinks()
        ) as log:
            loop = job.loop(config, data, roles, log, pool.usage)
            await loop.run(checkpoint, stop)

        async def leave_result() -> None:
            if config.trains:
                await pool.finish()
            await job.at_end(config, data, roles)

        await loop.with_result(leave_result)
