"""SFT, reward models and DPO: batches of a data set's rows, one optimiser step each."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

from rlhf_ray.config.supervised import SupervisedConfig
from rlhf_ray.data.order import DataOrder, TrainedRows, order_of
from rlhf_ray.deadlines import in_thread
from rlhf_ray.loops.checkpoints import Checkpoint
from rlhf_ray.loops.keeper import Keeper
from rlhf_ray.loops.report import prefixed, stop_if_diverged, time_metrics, utilisation
from rlhf_ray.loops.sentinels import Sentinels, stop_if_alarmed
from rlhf_ray.loops.setup import setup_of
from rlhf_ray.loops.stopping import Stop
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.metrics.clock import StepClock
from rlhf_ray.metrics.log import Table
from rlhf_ray.metrics.usage import Usage, unknown_usage
from rlhf_ray.packing import plan_update
from rlhf_ray.roles.protocols import Supervised
from rlhf_ray.roles.reports import Evaluated, Metrics
from rlhf_ray.shared_prompts import planned_tokens

T = TypeVar("T")
Rows: TypeAlias = Sequence[Any]
# Rows of a batch -> what the learner is given, the reference's log-probabilities included.
Prepare: TypeAlias = Callable[[Rows], Awaitable[Rows]]
# Step, held-out rows and what was found of them -> tables worth reading.
Show: TypeAlias = Callable[[int, Rows, Evaluated], Awaitable[Sequence[Table]]]


class SupervisedLoop:
    """Trains one role on rows in a resumable order.

    Attributes:
        ahead: The next step's rows, where they are prepared while one trains.
    """

    def __init__(
        self,
        config: SupervisedConfig,
        role: Supervised,
        rows: TrainedRows[Any],
        eval_rows: Rows,
        log: MetricsLog,
        *,
        prepare: Prepare | None = None,
        show: Show | None = None,
        usage: Usage = unknown_usage,
    ) -> None:
        """Put the parts together; `run` starts them.

        The job's name is the prefix of metrics that have none. `prepare` completes a batch before
        it is trained, the next step's while this one trains; `show` makes tables of evaluations.
        """
        self.config, self.role, self.log, self.usage = config, role, log, usage
        self.eval_rows = eval_rows
        self.prepare, self.show = prepare or _as_they_are, show
        self.order: DataOrder[Any] = order_of(rows, seed=config.seed, shuffle=config.data.shuffle)
        self.order_state = self.order.state_dict()
        self.epochs = 0.0
        self.sentinels = Sentinels(config.sentinels)
        self.setup = setup_of(config, rows)
        self.keeper = Keeper(config, self, {config.trained_role: role}, log)
        self._reading = threading.Lock()
        self.ahead: asyncio.Future[Rows] | None = None
        self._prepared_eval_rows: Rows | None = None

    async def run(self, checkpoint: Checkpoint | None, stop: Stop | None = None) -> None:
        """Train from the start or from a checkpoint to the last step, or until it shall stop.

        Raises:
            KeyboardInterrupt: It was asked to, and has saved the last step that was trained.
            RunError: A rank failed or hung.
            TrainingStopped: The loss is not finite step after step, or a sentinel ends the run.
        """
        await self.keeper.run(checkpoint, stop)

    async def with_result(self, call: Callable[[], Awaitable[T]]) -> T:
        """What comes of a call that takes the trained role as the last step left it."""
        return await self.keeper.with_result(call)

    async def begin(self, step: int) -> None:
        """Evaluate what a run starts with."""
        if not step:
            self.keeper.tell(0, await self._evaluate(0))
        self.hardware = await self.role.hardware()
        # Starting is no part of the first step.
        self.keeper.spans(step, (await self.usage()).spans)

    async def steps(self, first: int) -> None:
        """All of them, each with its batch prepared while the one before trains."""
        try:
            await self._steps(first)
        finally:
            if self.ahead is not None:
                self.ahead.cancel()
                self.ahead = None

    async def _steps(self, first: int) -> None:
        saved: Metrics = {}
        clock = StepClock()
        for step in range(first, self.config.total_steps + 1):
            self.keeper.begins(step)
            if self.keeper.stop.asked:
                await self.keeper.save(step - 1)
                return
            # Logged before it is saved: a run that resumes after this step has its metrics.
            metrics = {**await self._step(step, clock), **saved}
            alarms = self.sentinels.look(metrics)
            self.keeper.tell(step, metrics, {alarm.metric: alarm.text for alarm in alarms})
            stop_if_diverged(step, metrics, self.config)
            clock = StepClock()  # the checkpoint's time is the next step's
            saved = await self.keeper.save(step)
            stop_if_alarmed(step, alarms)

    async def _step(self, step: int, clock: StepClock) -> Metrics:
        with clock.phase("score"):
            rows = await self._batch(step)
        learner = self.config.learner
        lengths = [row.num_tokens for row in rows]
        plan = plan_update(
            planned_tokens(rows, shares_prompts=learner.shares_prompts),
            [row.num_trained_tokens for row in rows],
            data_parallel_size=self.config.num_ranks,
            max_tokens_per_micro_batch=learner.max_tokens_per_micro_batch,
            num_minibatches=1,
            num_epochs=1,
            seed=step,
            padded=learner.padded,
        )
        with clock.phase("update"):
            updated = await self.role.update(rows, plan)
        evaluated, used = await self._evaluate(step), await self.usage()
        timed = time_metrics(clock, num_samples=len(rows))
        metrics = {
            **prefixed(self.config.job, updated),
            **evaluated,
            **used.metrics,
            "data/epoch": self.epochs,
            **timed,
            "perf/tokens_per_s": sum(lengths) / timed["time/step"],
            "perf/update_tokens_per_s": sum(lengths) / timed["time/update"],
            **utilisation(
                self.hardware,
                num_flops=self.hardware.flops.of(
                    [length for row in rows for length in row.lengths_K],
                    num_scored=sum(row.num_trained_tokens for row in rows),
                    again_B=self._prompts_again(rows),
                ),
                seconds=timed["time/update"],
            ),
        }
        self.keeper.spans(step, [*used.spans, clock.whole(step=step)])
        return metrics

    def _prompts_again(self, rows: Rows) -> list[int]:
        """Tokens of prompts that are not computed for each of a row's sequences."""
        if not self.hardware.shares_prompts:
            return []
        return [row.num_prompt_tokens for row in rows for _ in row.lengths_K[1:]]

    async def _batch(self, step: int) -> Rows:
        rows = await (self.ahead or self._start_preparing())
        self.order_state, self.epochs = self.order.state_dict(), self.order.epochs
        self.ahead = self._start_preparing() if step < self.config.total_steps else None
        return rows

    def _start_preparing(self) -> asyncio.Future[Rows]:
        return asyncio.ensure_future(self._prepared())

    async def _prepared(self) -> Rows:
        rows = await in_thread(
            partial(self.order.take, self.config.batch_size),
            timeout_s=self.config.timeouts.call_s,
            actor="the driver",
            operation="reading the rows of a batch",
            lock=self._reading,
        )
        return await self.prepare(rows)

    async def _evaluate(self, step: int) -> dict[str, float]:
        every, last = self.config.eval.every, self.config.total_steps
        due = step in (0, last) or (every > 0 and step % every == 0)
        if not due or not self.eval_rows or self.keeper.is_known(step):
            return {}
        with StepClock().phase("evaluate") as timed:
            if self._prepared_eval_rows is None:
                self._prepared_eval_rows = await self.prepare(list(self.eval_rows))
            evaluated = await self.role.evaluate(self._prepared_eval_rows)
            if self.show is not None:
                for table in await self.show(step, self.eval_rows, evaluated):
                    self.log.table(table)
        named = {f"eval/{name}": value for name, value in evaluated.metrics.items()}
        return {**named, "time/evaluate": timed.seconds}

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint holds beside the role."""
        return {
            "order": self.order_state,
            "sentinels": self.sentinels.state_dict(),
            "setup": self.setup,
        }

    async def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        await in_thread(
            partial(self.order.load_state_dict, state["order"]),
            timeout_s=self.config.timeouts.call_s,
            actor="the driver",
            operation="going back in the data",
            lock=self._reading,
        )
        self.order_state = state["order"]
        self.sentinels = Sentinels(self.config.sentinels)
        self.sentinels.load_state_dict(state["sentinels"])


async def _as_they_are(rows: Rows) -> Rows:
    return rows
