"""PPO, GRPO and their kin: the loop. It reads as one step of training is told.

The controller holds ids, lengths, scores and references; tokens go from actor to actor.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

from rlhf_ray.algorithms.kl import KLController
from rlhf_ray.config.algorithm_table import ScoredModel
from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.data.order import TrainedRows, order_of
from rlhf_ray.deadlines import in_thread, side_by_side
from rlhf_ray.loops.checkpoints import Checkpoint
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.keeper import Keeper
from rlhf_ray.loops.publication import offload, publish, with_engines
from rlhf_ray.loops.report import (
    prefixed,
    publication_metrics,
    rollout_metrics,
    stop_if_diverged,
    stop_if_empty,
    update_flops,
    utilisation,
)
from rlhf_ray.loops.sentinels import Sentinels, stop_if_alarmed
from rlhf_ray.loops.setup import setup_of
from rlhf_ray.loops.stopping import Stop
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.metrics.clock import StepClock
from rlhf_ray.metrics.usage import Usage, unknown_usage
from rlhf_ray.packing import UpdatePlan, plan_update
from rlhf_ray.roles.groups import Ref, RolloutGroup, SampleArrays, ScoredGroup
from rlhf_ray.roles.protocols import Roles
from rlhf_ray.roles.reports import Metrics
from rlhf_ray.rollouts.feed import Collected, Feed
from rlhf_ray.rollouts.groups import summaries_of, trainable, trained_of
from rlhf_ray.rollouts.journal import journal_of
from rlhf_ray.rollouts.recorder import Recorder
from rlhf_ray.types import Prompt

logger = logging.getLogger(__name__)

T = TypeVar("T")
TrainedRole: TypeAlias = Literal["policy", "value"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one role trains on: experience, and a plan of which it is the rows."""

    experience: Ref
    plan: UpdatePlan


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What is known of a step's rollouts before the update.

    Attributes:
        sampled: All groups, with their scores.
        trained: Groups with the samples that are trained. None are left where no reward applied to
            any, where no group has enough of them to be compared, or where all were cut off and
            those are masked.
        batches: Of `trained`, by the roles that learn from it; none where nothing is left.
        metrics: What was measured before the update, of all that was compared.
    """

    sampled: Sequence[ScoredGroup]
    trained: Sequence[RolloutGroup] = ()
    batches: Mapping[TrainedRole, Batch] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)


class OnlineLoop:
    """Trains a policy on its own rollouts.

    The version of the weights is the number of steps done; so is the step number of a checkpoint.
    That holds for steps in which the policy stays as it is, too: while the critic learns alone
    (`value.warmup_steps`), and where nothing is left to train. They end with a publication as well,
    so that the engines begin each step alike, resumed or not.
    """

    def __init__(
        self,
        config: OnlineConfig,
        roles: Roles,
        prompts: TrainedRows[Prompt],
        evaluation: Evaluation,
        log: MetricsLog,
        *,
        usage: Usage = unknown_usage,
    ) -> None:
        """Put the parts together; `run` starts them."""
        self.config, self.roles, self.evaluation, self.log = config, roles, evaluation, log
        self.usage = usage
        self.order = order_of(prompts, seed=config.seed, shuffle=config.data.shuffle)
        self.setup = setup_of(config, prompts)
        self.scored_models = config.scored_models
        self.kl = KLController(config.algorithm.kl)
        self.sentinels = Sentinels(config.sentinels)
        self.num_empty_in_a_row = 0
        trained = {"policy": roles.policy, "value": roles.value}
        self.keeper = Keeper(config, self, {k: v for k, v in trained.items() if v}, log)
        self.journal = journal_of(config.run_dir, self.setup)
        self.recorder = Recorder(self.journal, roles.store, timeout_s=config.timeouts.call_s)
        self.feed = self._feed_behind(0)

    async def run(self, checkpoint: Checkpoint | None, stop: Stop | None = None) -> None:
        """Train from the start or from a checkpoint to the last step, or until it shall stop.

        Raises:
            KeyboardInterrupt: It was asked to, and has saved the last step that was trained.
            RunError: A role failed, hung or disagrees with another.
            TrainingStopped: It diverged, too many steps in a row had nothing to train, or a
                sentinel ends it.
        """
        await self.keeper.run(checkpoint, stop)
        await self.recorder.next_segment(self.feed.admission.frontier)  # the result is whole
        await self.roles.rollout.sleep(level=2)  # the result is exported next

    async def with_result(self, call: Callable[[], Awaitable[T]]) -> T:
        """What comes of a call that takes the trained roles as the last step left them."""
        return await self.keeper.with_result(call)

    async def begin(self, step: int) -> None:
        """Publish what is trained; what was decided about draws behind the step is not lost."""
        self.hardware = await self.roles.policy.hardware()
        await publish(self.roles, step)
        if not step:
            self.keeper.tell(0, await self._evaluate(0))
        # Starting is no part of the first step.
        self.keeper.spans(step, (await self.usage()).spans)
        await self.recorder.read(self.order.position)
        if left := self.recorder.left.draws:
            logger.info("%d groups are there already, in %s", len(left), self.journal.folder)
        self.feed = self._feed_behind(step)

    async def steps(self, first: int) -> None:
        """All of them, with rollouts as far ahead as is allowed."""
        async with aclosing(self.feed):
            await self._steps(first)

    def _feed_behind(self, steps: int) -> Feed:
        return Feed(
            self.config,
            self.order,
            engine=self.roles.rollout,
            reward=self.roles.reward,
            publishes=True,
            steps=steps,
            recorder=self.recorder,
        )

    async def _steps(self, first: int) -> None:
        saved: Metrics = {}
        clock = StepClock()
        for step in range(first, self.config.total_steps + 1):
            self.keeper.begins(step)
            take = with_engines(self.roles, step - 1, partial(self.feed.take, step, clock))
            collected = await self.keeper.stop.or_asked(take)
            if collected is None:
                await self.feed.aclose()
                await offload(self.roles.reward)  # it may have been amid scores
                await self._save(step - 1)
                return
            # Logged before it is saved: a run that resumes after this step has its metrics.
            metrics = {**await self._step(step, collected, clock), **saved}
            alarms = self.sentinels.look(metrics)
            self.keeper.tell(step, metrics, {alarm.metric: alarm.text for alarm in alarms})
            stop_if_diverged(step, metrics, self.config)
            stop_if_empty(step, self.num_empty_in_a_row, self.config)
            clock = StepClock()  # the checkpoint's time is the next step's
            saved = await self._save(step)
            stop_if_alarmed(step, alarms)

    async def _step(self, step: int, collected: Collected, clock: StepClock) -> Metrics:
        kl_coefficient = self.kl.coefficient
        with clock.phase("generate"):
            await self.roles.rollout.sleep(level=2)
        with clock.phase("score"):
            scored = await self._score(step, collected)
            await offload(self.roles.reference, self.roles.reward)
        self._count_empty(step, scored)
        with clock.phase("update"):
            updated = await self._update(step, scored, kl_coefficient)
        with clock.phase("publish"):
            published = await publish(self.roles, step)
        trained = {**updated, **scored.metrics}
        if "policy/kl_ref" in trained and self._policy_learns(step):
            self.kl.update(
                trained["policy/kl_ref"], num_sequences=len(summaries_of(scored.trained))
            )
        evaluated, used = await self._evaluate(step), await self.usage()
        runs_ahead = self.config.max_staleness > 0
        metrics = {
            **trained,
            **evaluated,
            **used.metrics,
            **rollout_metrics(
                scored.sampled,
                scored.trained,
                used.metrics,
                clock,
                num_kept=len(collected.groups),
                num_refilled=collected.num_refilled,
                version=step - 1,
                apart=self.config.algorithm.tells_rewards_apart,
                runs_ahead=runs_ahead,
            ),
            **self._ahead(collected),
            **self._utilisation(scored, clock),
            "rollout/empty_steps_in_a_row": float(self.num_empty_in_a_row),
            "policy/kl_coefficient": kl_coefficient,
            **publication_metrics(published, trained, runs_ahead=runs_ahead),
            "data/epoch": collected.epochs,
        }
        draws = [group.draw for group in scored.trained]
        self.keeper.spans(step, [*used.spans, clock.whole(step=step, draws=draws)])
        return metrics

    async def _score(self, step: int, collected: Collected) -> Scored:
        """Everything that is known of the rollouts before the update, side by side."""
        roles = self.roles
        groups = [group for group in collected.groups if group.summaries_G]
        if not groups:  # dynamic sampling left all out, when they were scored, or no try succeeded
            return Scored(sampled=await self.feed.scores(collected))
        passes: list[Awaitable[Any]] = [
            self._by_policy(groups),
            _optional(roles.reference, "logprobs", groups),
            _optional(roles.value, "values", groups),
            self.feed.scores(collected),
        ]
        by_policy, reference, values, sampled = await side_by_side(passes)
        kept = {group.draw for group in groups}
        compared = trainable(
            [scored for scored in sampled if scored.group.draw in kept],
            smallest_group=self.config.smallest_group,
        )
        trained = trained_of(compared, self.config.algorithm.trains)
        if not trained:
            return Scored(sampled=sampled)
        plans = {role: self._plan(step, trained, role) for role in self._learning(step)}
        experiences, metrics = await roles.experience.build(
            compared,
            old=by_policy.get("policy"),
            reference=by_policy.get("base", reference),
            values=values,
            kl_coefficient=self.kl.coefficient,
            plans=list(plans.values()),
        )
        batches = {
            role: Batch(experience=experience, plan=plan)
            for (role, plan), experience in zip(plans.items(), experiences, strict=True)
        }
        return Scored(sampled=sampled, trained=trained, batches=batches, metrics=metrics)

    async def _by_policy(self, groups: Sequence[RolloutGroup]) -> dict[ScoredModel, SampleArrays]:
        """Log-probabilities by the models that only the policy's ranks can score with."""
        models = self.scored_models
        arrays = await self.roles.policy.logprobs(groups, models) if models else []
        return dict(zip(models, arrays, strict=True))

    def _count_empty(self, step: int, scored: Scored) -> None:
        if scored.trained:
            self.num_empty_in_a_row = 0
            return
        self.num_empty_in_a_row += 1
        logger.warning(
            "step %d trains nothing: of %d rollouts none is left that has a score and a group%s",
            step, sum(len(group.scores_G) for group in scored.sampled),
            " and is not cut off" if self.config.algorithm.truncated == "mask" else "",
        )  # fmt: skip

    def _ahead(self, collected: Collected) -> Metrics:
        """How far generation is ahead, where it may be."""
        if not self.config.max_staleness:
            return {}
        return {
            "async/groups_ahead": float(collected.num_ahead),
            "async/groups_running": float(collected.num_running),
        }

    def _policy_learns(self, step: int) -> bool:
        """Not while the critic learns alone."""
        return step > self.config.value.warmup_steps

    def _learning(self, step: int) -> list[TrainedRole]:
        policy: list[TrainedRole] = ["policy"] if self._policy_learns(step) else []
        return policy if self.roles.value is None else [*policy, "value"]

    async def _update(self, step: int, scored: Scored, kl_coefficient: float) -> dict[str, float]:
        """Policy and critic side by side, each on its own group."""
        if not scored.trained:
            return {}
        learning, coefficients = self._learning(step), {"policy": [kl_coefficient], "value": []}
        updates: list[Awaitable[Metrics]] = []
        for role in learning:
            batch, learner = scored.batches[role], getattr(self.roles, role)
            updates.append(learner.update(batch.experience, batch.plan, *coefficients[role]))
        metrics: dict[str, float] = {}
        for role, told in zip(learning, await side_by_side(updates), strict=True):
            metrics |= prefixed(role, told)
        return metrics

    def _plan(self, step: int, trained: Sequence[RolloutGroup], role: TrainedRole) -> UpdatePlan:
        learner: LearnerConfig = getattr(self.config, role)
        group: GroupConfig = getattr(self.config.placement, role)
        summaries_B = summaries_of(trained)
        return plan_update(
            [summary.num_tokens for summary in summaries_B],
            [summary.num_action_tokens for summary in summaries_B],
            data_parallel_size=group.ranks,
            max_tokens_per_micro_batch=learner.max_tokens_per_micro_batch,
            num_minibatches=self.config.algorithm.minibatches,
            num_epochs=self.config.algorithm.epochs,
            seed=self.config.seed * 1_000_003 + step,
            padded=learner.padded,
            prompts_B=[share for group in trained for share in group.prompts_G]
            if learner.shares_prompts
            else None,
        )

    def _utilisation(self, scored: Scored, clock: StepClock) -> Metrics:
        """Of the policy's update, where there was one."""
        if "policy" not in scored.batches:
            return {}
        num_flops = update_flops(self.hardware, scored.trained)
        return utilisation(
            self.hardware,
            num_flops=self.config.algorithm.epochs * num_flops,
            seconds=clock.seconds["update"],
        )

    async def _evaluate(self, step: int) -> dict[str, float]:
        every, last = self.config.eval.every, self.config.total_steps
        is_due = step in (0, last) or (every and step % every == 0)
        if not is_due or self.keeper.is_known(step):
            return {}
        evaluate = partial(self.evaluation.run, self.roles, step)
        result = await with_engines(self.roles, step, evaluate)
        if result.table is not None:
            self.log.table(result.table)
        return result.metrics

    async def _save(self, step: int) -> Metrics:
        """Save where that is due; how long the run stood still is a metric of the next step."""
        is_last = step == self.config.total_steps

        async def make_room() -> None:
            await self.recorder.next_segment(self._oldest_frontier())
            # The states of training need their room; nobody samples after the last step.
            await self.roles.rollout.sleep(level=2 if is_last else 1)

        return await self.keeper.save(step, make_room)

    def _oldest_frontier(self) -> int:
        """The first draw that the oldest checkpoint does not know."""
        oldest = self.keeper.store.oldest()
        return 0 if oldest is None else int(oldest.state["frontier"])

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint holds beside the roles."""
        return {
            "order": self.feed.order_at_frontier,
            "frontier": self.feed.admission.frontier,
            "kl": self.kl.state_dict(),
            "sentinels": self.sentinels.state_dict(),
            "num_empty_in_a_row": self.num_empty_in_a_row,
            "setup": self.setup,
        }

    async def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        await in_thread(
            partial(self.order.load_state_dict, state["order"]),
            timeout_s=self.config.timeouts.call_s,
            actor="the driver",
            operation="going back in the data",
            lock=self.feed.reading,
        )
        self.kl.load_state_dict(state["kl"])
        self.sentinels = Sentinels(self.config.sentinels)
        self.sentinels.load_state_dict(state["sentinels"])
        self.num_empty_in_a_row = state["num_empty_in_a_row"]


async def _optional(role: Any, method: str, *arguments: Any) -> Any:
    """A role's answer, or None where the job, or the step, has no such role."""
    return None if role is None else await getattr(role, method)(*arguments)
