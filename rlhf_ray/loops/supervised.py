"""Supervised fine-tuning: batches of examples, one optimiser step each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.data.loader import ResumableOrder
from rlhf_ray.data.packing import plan_update
from rlhf_ray.errors import RunError
from rlhf_ray.loops.checkpoints import Checkpoint, CheckpointStore
from rlhf_ray.loops.clock import StepClock
from rlhf_ray.loops.setup import setup_of
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.roles import Metrics, SupervisedPolicy
from rlhf_ray.types import SftExample


class SupervisedLoop:
    """Trains on examples in a resumable order."""

    def __init__(
        self,
        config: SftConfig,
        policy: SupervisedPolicy,
        examples: Sequence[SftExample],
        eval_examples: Sequence[SftExample],
        log: MetricsLog,
    ) -> None:
        """Put the parts together; `run` starts them."""
        self.config, self.policy, self.log = config, policy, log
        self.examples, self.eval_examples = examples, eval_examples
        self.order = ResumableOrder(len(examples), seed=config.seed, shuffle=config.data.shuffle)
        self.store = CheckpointStore(Path(config.run_dir), keep=config.checkpoint.keep)
        self.num_skipped_in_a_row = 0

    async def run(self, checkpoint: Checkpoint | None) -> None:
        """Train from the start or from a checkpoint to the last step.

        Raises:
            RunError: A rank failed or hung, or the loss is not finite step after step.
        """
        first = 1
        if checkpoint is None:
            self.log.log(0, await self._evaluate(0))
        else:
            first = checkpoint.step + 1
            self.order.load_state_dict(checkpoint.state["order"])
            self.num_skipped_in_a_row = checkpoint.state["num_skipped_in_a_row"]
            await self.policy.restore(str(checkpoint.folder / "policy"))
        for step in range(first, self.config.total_steps + 1):
            self.log.log(step, await self._step(step))
            await self._save(step)

    async def _step(self, step: int) -> Metrics:
        clock = StepClock()
        rows = [self.examples[row] for row in self.order.take(self.config.batch_size)]
        learner = self.config.policy
        lengths = [len(row.token_ids_T) for row in rows]
        plan = plan_update(
            lengths,
            [int(row.trained_T.sum()) for row in rows],
            num_ranks=self.config.placement.policy.ranks,
            max_tokens_per_micro_batch=learner.max_tokens_per_micro_batch,
            num_minibatches=1,
            num_epochs=1,
            seed=step,
            padded=learner.padded,
        )
        with clock.phase("update"):
            updated = await self.policy.update(rows, plan)
        self._stop_if_diverging(step, updated["skipped_steps"])
        step_s = clock.elapsed_s()
        return {
            **{f"sft/{name}": value for name, value in updated.items()},
            **await self._evaluate(step),
            "data/epoch": self.order.position / self.order.num_rows,
            "time/update": clock.seconds["update"],
            "time/step": step_s,
            "perf/tokens_per_s": sum(lengths) / step_s,
        }

    async def _evaluate(self, step: int) -> dict[str, float]:
        every, last = self.config.eval.every, self.config.total_steps
        due = step in (0, last) or (every > 0 and step % every == 0)
        if not due or not self.eval_examples:
            return {}
        return {"eval/loss": await self.policy.evaluate(self.eval_examples)}

    def _stop_if_diverging(self, step: int, num_skipped: float) -> None:
        self.num_skipped_in_a_row = self.num_skipped_in_a_row + 1 if num_skipped else 0
        limit = self.config.nonfinite_steps_to_stop
        if self.num_skipped_in_a_row >= limit:
            raise RunError(
                f"step {step}: loss or gradient was not finite in {limit} steps in a row; the "
                f"examples of the skipped steps are in {self.config.run_dir}/skipped"
            )

    async def _save(self, step: int) -> None:
        every = self.config.checkpoint.every
        if step != self.config.total_steps and not (every and step % every == 0):
            return
        folder = self.store.begin(step)
        await self.policy.save(str(folder / "policy"))
        state = {
            "order": self.order.state_dict(),
            "num_skipped_in_a_row": self.num_skipped_in_a_row,
            "setup": setup_of(self.config),
        }
        await asyncio.to_thread(self.store.commit, step, state, roles=["policy"])
