"""Steps 1 to 3 of a training step: prompts to groups with scores, as many as the step wants."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.data.order import DataOrder
from rlhf_ray.deadlines import deadline, in_thread, side_by_side
from rlhf_ray.errors import RunError
from rlhf_ray.metrics.clock import StepClock
from rlhf_ray.roles.groups import GenerationRequest, RolloutGroup, ScoredGroup
from rlhf_ray.roles.protocols import Reward, RolloutEngine
from rlhf_ray.rollouts.admission import Admission, StepDraws
from rlhf_ray.rollouts.groups import (
    Sampling,
    Scoring,
    Tries,
    has_spread,
    require_finite,
    with_scores,
)
from rlhf_ray.rollouts.recorder import Recorder
from rlhf_ray.rollouts.seeds import sample_seeds
from rlhf_ray.types import Prompt

logger = logging.getLogger(__name__)

# What comes on top of deadlines: an event loop that is busy meanwhile.
SLACK_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A step's groups, in the order of their draws.

    Attributes:
        sampled: All of them; `Feed.scores` has what they are worth.
        groups: To train on if a reward applies to them: all, unless dynamic sampling left some out.
        num_refilled: Groups that dynamic sampling sampled in place of others.
        num_ahead: Groups of later steps that are sampled already.
        num_running: Groups of later steps that are being sampled.
        epochs: Of the data, with the last of them; later steps' may be read already.
    """

    sampled: Sequence[RolloutGroup]
    groups: Sequence[RolloutGroup]
    num_refilled: int
    num_ahead: int
    num_running: int
    epochs: float


class Feed:
    """Draws prompts, has them answered and scored, and decides which groups make a step.

    Each group goes its way by itself, as far ahead of the loop as `Admission` lets it. The first
    failure ends all that is under way and is raised to whoever waits; what was decided stays, and
    the next wait begins again what was lost.

    Attributes:
        order_at_frontier: State of the data's order before the first draw that no step has taken.
        reading: Held while a thread takes from the order, also by one that nobody waits for.
    """

    def __init__(
        self,
        config: OnlineConfig,
        order: DataOrder[Prompt],
        *,
        engine: RolloutEngine,
        reward: Reward,
        publishes: bool,
        steps: int = 0,
        recorder: Recorder | None = None,
    ) -> None:
        """Go on behind `steps` steps, from where `order` is, which nobody else takes from.

        `publishes` says whether each step ends with that; `recorder` keeps what was decided, where
        a run that goes on shall not sample it again.
        """
        self.config, self.order = config, order
        self.rollout, self.reward, self.publishes = engine, reward, publishes
        tries = Tries(config.failures.row)
        self.sampling, self.scoring = Sampling(engine, tries), Scoring(reward, tries)
        self._most_s = _most_s(config)
        self.recorder = recorder
        self.filters = config.algorithm.dynamic_sampling.enabled
        self.admission = Admission(
            groups_per_step=config.prompts_per_step,
            max_rounds=config.algorithm.dynamic_sampling.max_rounds if self.filters else 1,
            max_staleness=config.max_staleness,
            frontier=order.position,
            steps=steps,
            last_step=config.total_steps,
        )
        self.order_at_frontier = order.state_dict()
        # A draw's prompt, state and epochs of the order behind it; read in threads, one at a time.
        self._rows: dict[int, tuple[Prompt, Mapping[str, Any], float]] = {}
        self.reading = threading.Lock()
        # What is known of draws, until the scores of their step are handed over.
        self._groups: dict[int, RolloutGroup] = {}
        self._scored: dict[int, ScoredGroup] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}  # in the order of their beginning
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()

    async def take(self, step: int, clock: StepClock) -> Collected:
        """The groups of the next step; the clock is told which waits are generation, which scoring.

        The engines have the weights of the step before.

        Raises:
            RunError: A role failed, or dynamic sampling found fewer groups with spread than the
                step needs, where that is to be an error.
        """
        self.admission.moved_to(step - 1)
        self._admit()
        while self.admission.step_draws() is None:
            is_sampling = self._is_sampling()
            with clock.phase("generate" if is_sampling else "score"):
                while self.admission.step_draws() is None and self._is_sampling() == is_sampling:
                    await self._change()
        draws = self.admission.consume()
        self._require_enough(step, draws)
        _, self.order_at_frontier, epochs = self._rows[draws.all[-1]]
        for draw in draws.all:
            del self._rows[draw]
        return Collected(
            sampled=[self._groups[draw] for draw in draws.all],
            groups=[self._kept(draw) for draw in draws.accepted],
            num_refilled=len(draws.all) - self.config.prompts_per_step,
            num_ahead=sum(draw >= self.admission.frontier for draw in self._groups),
            num_running=len(self.admission.running),
            epochs=epochs,
        )

    async def scores(self, collected: Collected) -> list[ScoredGroup]:
        """The scores of a step that was taken, as soon as they are there; to be asked once.

        What was decided about its groups is on the disk then.

        Raises:
            RunError: A role failed.
        """
        draws = [group.draw for group in collected.sampled]
        while not all(draw in self._scored for draw in draws):
            await self._change()
        if self.recorder is not None:
            await self.recorder.sync()
        for draw in draws:
            del self._groups[draw]
        return [self._scored.pop(draw) for draw in draws]

    async def aclose(self) -> None:
        """End what is under way."""
        self._failure = self._failure or RunError("sampling was cut off")
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait([*self._tasks], timeout=SLACK_S)

    def _kept(self, draw: int) -> RolloutGroup:
        """What of an accepted group may be trained, as far as that is decided."""
        return with_scores(self._scored[draw]).group if self.filters else self._groups[draw]

    # What is under way.

    async def _change(self) -> None:
        """Wait until more is known of a draw, with everything under way that may be.

        Raises:
            RunError: A role failed.
        """
        if not self._tasks and self._failure is None:
            self._begin_again()
            assert self._tasks, "nothing would ever change"
        if self._tasks:
            async with deadline(self._most_s, actor="the feed", operation="sampling and scoring"):
                await self._changed.wait()
            self._changed.clear()
        if self._failure is not None and not self._tasks:
            failure, self._failure = self._failure, None
            raise failure

    def _begin_again(self) -> None:
        """What a failure has left: nobody works on it."""
        self._admit()
        for draw in self._groups:
            if draw not in self._scored and draw not in self.admission.running:
                self._start(self._score(draw))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """One piece of work is done; where it failed, all are ended, and their draws lost."""
        del self._tasks[task]
        error = RunError("sampling was cut off") if task.cancelled() else task.exception()
        if error is not None and self._failure is None:
            self._failure = error
            for other in self._tasks:
                other.cancel()
        if self._failure is not None and not self._tasks:
            for draw in sorted(self.admission.running):
                self.admission.lost(draw)
        self._changed.set()

    def _is_sampling(self) -> bool:
        running = self.admission.running
        return not running or any(draw not in self._groups for draw in running)

    # The way of a draw.

    def _admit(self) -> None:
        """Begin what may run now."""
        if self._failure is None and (draws := self.admission.admit()):
            self._start(self._begin(draws))

    async def _begin(self, draws: Sequence[int]) -> None:
        """Have draws answered: together where none runs ahead, else each by itself."""
        ahead = self.config.max_staleness > 0
        await self._read(draws[-1])
        sampled = [draw for draw in draws if draw in self._groups]  # before a failure
        others = [draw for draw in draws if draw not in self._groups]
        recorded = self._recorded(others)
        for draw in recorded:
            self._start(self._replay(draw))
        left = [draw for draw in others if draw not in recorded]
        unsampled = self._unsampled(left)
        if fresh := [draw for draw in left if draw not in unsampled]:
            requests = [self._request(draw) for draw in fresh]
            answers = await self.rollout.generate(requests, together=not ahead)
            for request, answer in zip(requests, map(asyncio.ensure_future, answers), strict=True):
                task = self._start(self._sample(request, answer))
                # Also where it ends before it began.
                task.add_done_callback(partial(_cancel, answer))
        self._groups |= unsampled
        if known := [*sampled, *unsampled]:
            await self._go_on(known)

    def _unsampled(self, draws: Sequence[int]) -> dict[int, RolloutGroup]:
        """Those whose environment failed an earlier process at every try: it is not met again."""
        found = {}
        for draw in draws:
            failed = () if self.recorder is None else self.recorder.left.unsampled.get(draw, ())
            if failed:
                found[draw] = RolloutGroup.unsampled(self._rows[draw][0], draw, failed)
        return found

    async def _sample(
        self, request: GenerationRequest, answer: asyncio.Future[RolloutGroup]
    ) -> None:
        self._groups[request.draw] = await self.sampling.group(request, answer)
        await self._go_on([request.draw])

    async def _go_on(self, draws: Sequence[int]) -> None:
        """With draws that are sampled: their scores, and what follows from these."""
        if self.config.scores_behind_engines:
            if self._is_sampling():
                return
            # Another round may follow where groups are filtered.
            await self.rollout.sleep(2 if self.publishes and not self.filters else 1)
            draws = sorted(self.admission.running)
        for draw in draws:
            self._start(self._score(draw))
            if not self.filters:
                self._decide(draw, accepted=True)

    async def _score(self, draw: int) -> None:
        scored = await self._scores_of(self._groups[draw])
        accepted = not self.filters or self._has_spread(scored)
        if self.recorder is not None:
            await self.recorder.record(scored, accepted=accepted)
        self._scored[draw] = scored
        if self.filters:
            if all(running in self._scored for running in self.admission.running):
                await self.reward.offload()
            self._decide(draw, accepted=accepted)

    async def _scores_of(self, group: RolloutGroup) -> ScoredGroup:
        """Of a group that nobody could score before, it is not tried again."""
        failed = () if self.recorder is None else self.recorder.failed(group.draw)
        return ScoredGroup.skipped(group, failed) if failed else await self.scoring.score(group)

    def _decide(self, draw: int, *, accepted: bool) -> None:
        self.admission.decided(draw, accepted=accepted)
        self._admit()

    def _has_spread(self, scored: ScoredGroup) -> bool:
        require_finite(scored)
        apart = self.config.algorithm.tells_rewards_apart
        return has_spread(with_scores(scored).scores_G, apart=apart)

    def _recorded(self, draws: Sequence[int]) -> list[int]:
        """Draws that an earlier process decided.

        Of a wave all or none: which requests share a batch decides the last bits of all.
        """
        if self.recorder is None:
            return []
        found = [draw for draw in draws if draw in self.recorder]
        if len(found) < len(draws) and not self.config.max_staleness:
            self.recorder.forget(found)
            return []
        return found

    async def _replay(self, draw: int) -> None:
        assert self.recorder is not None
        scored, accepted = await self.recorder.replay(draw, self._rows[draw][0])
        self._groups[draw], self._scored[draw] = scored.group, scored
        self._decide(draw, accepted=accepted)

    async def _read(self, last: int) -> None:
        """The prompts of all draws up to `last`, as far as nobody has read them.

        They come in their order, whichever thread is the first; one that was given up goes on.
        """

        def read() -> None:
            while (draw := self.order.position) <= last:
                [prompt] = self.order.take(1)
                self._rows[draw] = prompt, self.order.state_dict(), self.order.epochs

        await in_thread(
            read,
            timeout_s=self.config.timeouts.call_s,
            actor="the driver",
            operation="reading prompts",
            lock=self.reading,
        )

    def _request(self, draw: int) -> GenerationRequest:
        prompt, *_ = self._rows[draw]
        return GenerationRequest(
            prompt=prompt,
            draw=draw,
            seeds_G=sample_seeds(
                seed=self.config.seed,
                draw=draw,
                prompt_id=prompt.prompt_id,
                num_samples=self.config.samples_per_prompt,
            ),
            temperature=self.config.rollout.temperature,
            max_new_tokens=self.config.rollout.max_new_tokens,
            newest_version=self.admission.newest_version(draw) if self.publishes else None,
        )

    def _require_enough(self, step: int, draws: StepDraws) -> None:
        num_found, num_wanted = len(draws.accepted), self.config.prompts_per_step
        if num_found == num_wanted:
            return
        settings = self.config.algorithm.dynamic_sampling
        if settings.on_exhausted == "error":
            raise RunError(
                f"step {step}: {num_found} of {num_wanted} groups have scores that differ after "
                f"{settings.max_rounds} rounds ({len(draws.rejected)} filtered); the prompts are "
                "too easy or too hard, or max_rounds is too low"
            )
        logger.warning(
            "step %d trains %d of %d groups: in %d rounds no more had scores that differ",
            step, num_found, num_wanted, settings.max_rounds,
        )  # fmt: skip


def _most_s(config: OnlineConfig) -> float:
    """Until something changes: all that is under way has a deadline, and ends by it.

    Each try of a group's scores may end with a worker that has to be started again.
    """
    timeouts, num_functions = config.timeouts, len(config.reward.functions)
    # Services are asked beside each other.
    try_s = (num_functions + 1) * timeouts.reward_s + timeouts.start_s
    num_tries = config.failures.row.retries + 1
    new_actor_s = 2 * timeouts.place_s + timeouts.start_s
    # The first to be admitted; in an environment each may end with a worker as well.
    num_attempts = 1 + config.most_attempts
    sampling_s = num_attempts * (timeouts.call_s + new_actor_s) + timeouts.publish_s
    return sampling_s + num_tries * try_s + SLACK_S


def _cancel(answer: asyncio.Future[Any], _: Any) -> None:
    answer.cancel()


async def sample_all(
    rollout: RolloutEngine, requests: Sequence[GenerationRequest]
) -> list[RolloutGroup]:
    """Have requests answered together; the first that fails ends the others."""
    return await side_by_side(await rollout.generate(requests))
