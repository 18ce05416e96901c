"""What a loop goes on from: saved where that is due, and gone back to where a role lost its state.

A run that goes back does what a resumed one does: all that is trained is restored, and the steps
behind are done again, from what is decided already. What they say of themselves is known.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rlhf_ray.config.run import JobConfig
from rlhf_ray.deadlines import in_thread, side_by_side
from rlhf_ray.errors import ResultsLost, RunError, StateLost
from rlhf_ray.loops.checkpoints import Checkpoint, CheckpointStore
from rlhf_ray.loops.stopping import Stop
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.metrics.clock import StepClock
from rlhf_ray.metrics.spans import ProcessSpans
from rlhf_ray.roles.reports import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Trained(Protocol):
    """A role whose state is in checkpoints."""

    async def save(self, folder: str) -> None:
        """Write the trained state into `folder`."""

    async def restore(self, folder: str) -> None:
        """Read what `save` wrote; where it is empty, begin as the job began."""


class Kept(Protocol):
    """A loop, as far as its own state and its course are kept."""

    def state(self) -> Mapping[str, Any]:
        """Of the data's order and of controllers, as JSON has it."""

    async def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state, whatever was done since."""

    async def begin(self, step: int) -> None:
        """Make ready for what comes behind a step, with what is trained as that step left it."""

    async def steps(self, first: int) -> None:
        """Do all steps from the first one on."""


class Keeper:
    """Keeps a loop, and the trained roles that it talks to.

    Attributes:
        stop: Whether the run was asked to end.
    """

    def __init__(
        self, config: JobConfig, loop: Kept, roles: Mapping[str, Trained], log: MetricsLog
    ) -> None:
        """Nothing is saved so far."""
        self.config, self.loop, self.roles, self.log = config, loop, roles, log
        self.store = CheckpointStore(Path(config.run_dir), keep=config.checkpoint.keep)
        self.stop = Stop()
        self._last_saved = 0
        self._lost_s: float | None = None
        self._recovery: dict[str, float] = {}
        self._results_lost: list[int] = []  # the last step that was told at each time

    async def run(self, checkpoint: Checkpoint | None, stop: Stop | None) -> None:
        """Run the loop behind a checkpoint; where state is lost, again behind the last one.

        Raises:
            KeyboardInterrupt: It was asked to stop, and has.
            RlhfRayError: What else ends it.
        """
        self.stop = stop or self.stop
        start, goes_back = copy.deepcopy(dict(self.loop.state())), checkpoint is not None
        while True:
            self._last_saved = step = 0 if checkpoint is None else checkpoint.step
            try:
                if goes_back:
                    await self._restore(checkpoint, start)
                await self.loop.begin(step)
                with self.stop.heeded():
                    async with self.store:
                        return await self.loop.steps(step + 1)
            except StateLost as lost:
                checkpoint, goes_back = await self._go_back(lost), True
                step = 0 if checkpoint is None else checkpoint.step
                self._add("replayed_steps", float(max(0, self.log.last_step - step)))
                self.log.rewind(self.log.last_step)  # a step that was not done has left tables

    async def with_result(self, call: Callable[[], Awaitable[T]]) -> T:
        """What comes of a call that takes all that is trained as the last step left it."""
        while True:
            try:
                return await call()
            except StateLost as lost:
                await self._restore_result(lost)

    async def _restore_result(self, lost: StateLost) -> None:
        while True:
            checkpoint = await self._go_back(lost)
            assert checkpoint is not None, "the last step was saved"
            try:
                return await self._restore(checkpoint, {})
            except StateLost as again:
                lost = again

    async def _go_back(self, lost: StateLost) -> Checkpoint | None:
        """The last checkpoint that is whole; None for the start.

        Raises:
            RunError: The results of one step were lost as often as actors may be started again.
        """
        if isinstance(lost, ResultsLost):
            self._require_new_step(lost)
        self._lost_s = self._lost_s or lost.met_s
        found = await in_thread(
            self.store.latest,
            timeout_s=self.config.timeouts.call_s,
            actor="the driver",
            operation="looking for a checkpoint",
        )
        step = 0 if found is None else found.step
        logger.warning("%s; the run goes back behind step %d", lost, step)
        return found

    def _require_new_step(self, lost: ResultsLost) -> None:
        """No budget of a role counts what is lost without a death."""
        step, most = self.log.last_step, self.config.failures.actor.restarts
        if self._results_lost.count(step) >= most:
            raise RunError(
                f"{lost} (the run went back {most} times for that without a new step: "
                "failures.actor.restarts)"
            ) from lost
        self._results_lost.append(step)

    async def _restore(self, checkpoint: Checkpoint | None, start: Mapping[str, Any]) -> None:
        """All of it: a role that did not die may have done a step that another has not."""
        await self.loop.restore(start if checkpoint is None else checkpoint.state)
        await side_by_side(
            role.restore("" if checkpoint is None else str(checkpoint.folder / name))
            for name, role in self.roles.items()
        )

    # A step is told once, however often it is done.

    def is_known(self, step: int) -> bool:
        """Whether a step was done and told before the run went back."""
        return step <= self.log.last_step

    def begins(self, step: int) -> None:
        """A step begins; one that is new ends what a death has cost."""
        if self._lost_s is not None and not self.is_known(step):
            self._add("seconds", time.monotonic() - self._lost_s)
            self._lost_s = None

    def tell(self, step: int, metrics: Metrics, warnings: Mapping[str, str] | None = None) -> None:
        """Log a step that is new, and with it what recovery has cost since the one before."""
        if not self.is_known(step):
            self.log.log(step, {**metrics, **self._recovery}, warnings)
            self._recovery = {}

    def spans(self, step: int, processes: Sequence[ProcessSpans]) -> None:
        """Keep what was done for a step; what is done again stands behind the last step."""
        self.log.spans(max(step, self.log.last_step), processes)

    def _add(self, name: str, amount: float) -> None:
        name = f"recovery/{name}"
        self._recovery[name] = self._recovery.get(name, 0.0) + amount

    # What is saved, and when.

    def is_due(self, step: int) -> bool:
        """Whether a step is to be saved: as configured, behind the last, or before a stop."""
        every, is_last = self.config.checkpoint.every, step == self.config.total_steps
        is_due = is_last or self.stop.asked or (every > 0 and step % every == 0)
        return is_due and step != self._last_saved

    async def save(self, step: int, before: Callable[[], Awaitable[None]] | None = None) -> Metrics:
        """Save a step where that is due; `before` is what comes before the roles write.

        How long the run stood still is a metric of the next step.
        """
        if not self.is_due(step):
            return {}
        state, call_s = self.loop.state(), self.config.timeouts.call_s
        with StepClock().phase("checkpoint") as timed:
            async with self.store.saving(step, state, list(self.roles), timeout_s=call_s) as folder:
                if before is not None:
                    await before()
                for name, role in self.roles.items():
                    await role.save(str(folder / name))
        self._last_saved = step
        return {"time/checkpoint": timed.seconds}
