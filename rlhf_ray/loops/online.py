"""PPO, GRPO and their kin: the loop. It reads as one step of training is told.

The controller holds ids, lengths, scores and references; tokens go from actor to actor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.data.loader import ResumableOrder
from rlhf_ray.data.packing import UpdatePlan, plan_update
from rlhf_ray.loops.checkpoints import Checkpoint, CheckpointStore
from rlhf_ray.loops.clock import StepClock
from rlhf_ray.loops.collection import Collected, Collector
from rlhf_ray.loops.divergence import stop_if_diverged
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.kl_control import kl_controller
from rlhf_ray.loops.report import rollout_metrics, utilisation
from rlhf_ray.loops.setup import setup_of
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.roles import Metrics, Ref, Roles, RolloutBatch, Usage, unknown_usage
from rlhf_ray.types import Prompt, Score


class OnlineLoop:
    """Trains a policy on its own rollouts.

    The version of the weights is the number of steps done; so is the step number of a checkpoint.
    """

    def __init__(
        self,
        config: OnlineConfig,
        roles: Roles,
        prompts: Sequence[Prompt],
        evaluation: Evaluation,
        log: MetricsLog,
        *,
        num_policy_ranks: int,
        num_value_ranks: int,
        usage: Usage = unknown_usage,
    ) -> None:
        """Put the parts together; `run` starts them."""
        self.config, self.roles, self.evaluation, self.log = config, roles, evaluation, log
        self.usage = usage
        self.num_policy_ranks, self.num_value_ranks = num_policy_ranks, num_value_ranks
        self.order = ResumableOrder(len(prompts), seed=config.seed, shuffle=config.data.shuffle)
        self.collector = Collector(
            config, prompts, self.order, engine=roles.rollout, reward=roles.reward
        )
        self.setup = setup_of(config, prompts)
        self.kl = kl_controller(config.algorithm.kl)
        self.store = CheckpointStore(Path(config.run_dir), keep=config.checkpoint.keep)

    async def run(self, checkpoint: Checkpoint | None) -> None:
        """Train from the start or from a checkpoint to the last step.

        Raises:
            RunError: A role failed, hung, disagrees with another, or diverged.
        """
        first = 1 if checkpoint is None else checkpoint.step + 1
        if checkpoint is not None:
            await self._restore(checkpoint)
        self.hardware = await self.roles.policy.hardware()
        await self.roles.rollout.wake_up()
        await self.roles.policy.publish(first - 1)
        if checkpoint is None:
            self.log.log(0, await self._evaluate(0))
        await self.usage()  # starting is no part of the first step
        saved: Metrics = {}
        clock = StepClock()
        for step in range(first, self.config.total_steps + 1):
            # Logged before it is saved: a run that resumes after this step has its metrics.
            metrics = {**await self._step(step, clock), **saved}
            self.log.log(step, metrics)
            stop_if_diverged(step, metrics, self.config)
            clock = StepClock()  # the checkpoint's time is the next step's
            saved = await self._save(step)

    async def _step(self, step: int, clock: StepClock) -> Metrics:
        kl_coefficient = self.kl.coefficient
        collected = await self.collector.collect(step, clock)
        with clock.phase("generate"):
            await self.roles.rollout.sleep()
        batch = collected.batch
        with clock.phase("score"):
            experience, scores, assembled = await self._score(collected)
        with clock.phase("update"):
            updated = await self._update(experience, batch, step, kl_coefficient)
        with clock.phase("publish"):
            await self.roles.rollout.wake_up()
            publication = await self.roles.policy.publish(step)
        if "policy/kl_ref" in assembled:
            self.kl.update(assembled["policy/kl_ref"], num_sequences=len(collected.kept))
        evaluated, used = await self._evaluate(step), await self.usage()
        return {
            **updated,
            **assembled,
            **evaluated,
            **used,
            **rollout_metrics(collected, scores, used, clock, version=step - 1),
            **utilisation(
                self.hardware,
                num_tokens=self.config.algorithm.epochs * batch.num_tokens,
                seconds=clock.seconds["update"],
            ),
            "policy/kl_coefficient": kl_coefficient,
            "mismatch/logprob_abs_max": max(
                assembled["mismatch/logprob_abs_max"], publication.logprob_abs_max
            ),
            "sync/seconds": publication.seconds,
            "sync/bytes": float(publication.num_bytes),
            "data/epoch": self.order.position / self.order.num_rows,
        }

    async def _score(self, collected: Collected) -> tuple[Ref, Sequence[Score], Metrics]:
        """Everything that is known of the rollouts before the update, side by side."""
        roles, batch = self.roles, collected.batch
        old, reference, values, scored = await asyncio.gather(
            roles.policy.logprobs(batch),
            _optional(roles.reference, "logprobs", batch),
            _optional(roles.value, "values", batch),
            collected.scores,
        )
        experience, metrics = await roles.assembler.build(
            batch,
            [scored[row].total for row in collected.kept],
            old=old,
            reference=reference,
            values=values,
            kl_coefficient=self.kl.coefficient,
        )
        return experience, scored, metrics

    async def _update(
        self, experience: Ref, batch: RolloutBatch, step: int, kl_coefficient: float
    ) -> dict[str, float]:
        """Policy and critic side by side, each on its own group."""
        policy, value = await asyncio.gather(
            self.roles.policy.update(experience, self._plan(batch, step, "policy"), kl_coefficient),
            _optional(self.roles.value, "update", experience, self._plan(batch, step, "value")),
        )
        named = {f"policy/{name}": number for name, number in policy.items()}
        return named | {f"value/{name}": number for name, number in (value or {}).items()}

    def _plan(self, batch: RolloutBatch, step: int, role: str) -> UpdatePlan:
        learner = self.config.policy if role == "policy" else self.config.value
        return plan_update(
            [s.num_prompt_tokens + s.num_response_tokens for s in batch.summaries_B],
            [s.num_own_tokens for s in batch.summaries_B],
            num_ranks=self.num_policy_ranks if role == "policy" else self.num_value_ranks,
            max_tokens_per_micro_batch=learner.max_tokens_per_micro_batch,
            num_minibatches=self.config.algorithm.minibatches,
            num_epochs=self.config.algorithm.epochs,
            seed=self.config.seed * 1_000_003 + step,
            padded=learner.padded,
        )

    async def _evaluate(self, step: int) -> dict[str, float]:
        every, last = self.config.eval.every, self.config.total_steps
        if step not in (0, last) and not (every and step % every == 0):
            return {}
        result = await self.evaluation.run(self.roles, step)
        if result.table is not None:
            self.log.table(result.table)
        return result.metrics

    async def _save(self, step: int) -> Metrics:
        """Write a checkpoint where one is due; its duration is a metric of the next step."""
        every = self.config.checkpoint.every
        if step != self.config.total_steps and not (every and step % every == 0):
            return {}
        with StepClock().phase("checkpoint") as timed, self.store.writing(step) as folder:
            await self.roles.policy.save(str(folder / "policy"))
            roles = ["policy"]
            if self.roles.value is not None:
                await self.roles.value.save(str(folder / "value"))
                roles.append("value")
            # In a thread: digests of large checkpoints take minutes, and actors need answers.
            await asyncio.to_thread(self.store.commit, step, self._state(), roles=roles)
        return {"time/checkpoint": timed.seconds}

    def _state(self) -> Mapping[str, Any]:
        return {
            "order": self.order.state_dict(),
            "kl": self.kl.state_dict(),
            "setup": self.setup,
        }

    async def _restore(self, checkpoint: Checkpoint) -> None:
        self.order.load_state_dict(checkpoint.state["order"])
        self.kl.load_state_dict(checkpoint.state["kl"])
        await self.roles.policy.restore(str(checkpoint.folder / "policy"))
        if self.roles.value is not None:
            await self.roles.value.restore(str(checkpoint.folder / "value"))


async def _optional(role: Any, method: str, *arguments: Any) -> Any:
    """A role's answer, or None where the job has no such role."""
    return None if role is None else await getattr(role, method)(*arguments)
