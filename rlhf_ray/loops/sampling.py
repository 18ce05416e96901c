"""Sampling without training: answers and their scores to files, and pairs of them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.data.messages import as_chat
from rlhf_ray.data.order import TrainedRows, order_of
from rlhf_ray.loops.checkpoints import Checkpoint, CheckpointStore
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.publication import publish, with_engines
from rlhf_ray.loops.report import sample_metrics
from rlhf_ray.loops.sample_files import PAIRS, SampleFiles
from rlhf_ray.loops.sentinels import Sentinels, stop_if_alarmed
from rlhf_ray.loops.setup import setup_of
from rlhf_ray.loops.stopping import Stop
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.metrics.clock import StepClock
from rlhf_ray.metrics.usage import Usage, unknown_usage
from rlhf_ray.roles.groups import ScoredGroup
from rlhf_ray.roles.protocols import Roles
from rlhf_ray.roles.reports import Metrics
from rlhf_ray.rollouts.feed import Collected, Feed
from rlhf_ray.types import Prompt, Rollout

logger = logging.getLogger(__name__)

T = TypeVar("T")

# By these columns a row would be taken for one with the prompt's own answers.
OF_OTHER_ANSWERS = {
    "answers", "ranks", "scores", "chosen", "rejected", "margin", "score_chosen", "score_rejected",
    "label", "completion", "conversations", "messages", "instruction", "output", "input", "target",
    "truncated", "truncated_chosen", "truncated_rejected",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An answer with its score, None where no reward applied; `truncated` where it was cut off.

    Attributes:
        messages: In an environment what was said, turn by turn; else empty.
    """

    text: str
    score: float | None
    truncated: bool
    messages: tuple[Mapping[str, str], ...] = ()

    @property
    def said(self) -> str | list[dict[str, str]]:
        """As a column of a row: all messages where there are several turns."""
        return [dict(message) for message in self.messages] or self.text


class SampleLoop:
    """Draws prompts, has them answered and judged, and writes what came of it."""

    def __init__(
        self,
        config: SampleConfig,
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
        self.store = CheckpointStore(Path(config.run_dir), keep=config.checkpoint.keep)
        self.files = SampleFiles(Path(config.run_dir))
        self.sentinels = Sentinels(config.sentinels)

    async def run(self, checkpoint: Checkpoint | None, stop: Stop | None = None) -> None:
        """Judge the policy on held-out prompts, then sample; the files grow with every step.

        From a checkpoint it goes on behind what is written.

        Raises:
            ConfigError: The files are not those that the checkpoint knows of.
            RunError: A role failed or hung.
            TrainingStopped: A sentinel ends it.
            KeyboardInterrupt: It was asked to end.
        """
        if checkpoint is not None:
            self.order.load_state_dict(checkpoint.state["order"])
            self.sentinels.load_state_dict(checkpoint.state["sentinels"])
        self.files.rewind({} if checkpoint is None else checkpoint.state["sizes"])
        await publish(self.roles, 0)
        if checkpoint is None:
            self.log.log(0, await self._judge())
        first = 1 if checkpoint is None else checkpoint.step + 1
        # Starting is no part of the first step.
        self.log.spans(first - 1, (await self.usage()).spans)
        self.feed = Feed(
            self.config,
            self.order,
            engine=self.roles.rollout,
            reward=self.roles.reward,
            publishes=False,
            steps=first - 1,
        )
        stop = stop or Stop()
        with stop.heeded():
            async with aclosing(self.feed), self.store:
                await self._steps(first, stop)
        if self.config.samples_per_prompt > 1 and not self.files.sizes()[PAIRS]:
            logger.warning("no pairs: no two answers to one prompt differ in their score")

    async def with_result(self, call: Callable[[], Awaitable[T]]) -> T:
        """What comes of a call; nothing was trained."""
        return await call()

    async def _steps(self, first: int, stop: Stop) -> None:
        clock = StepClock()
        for step in range(first, self.config.total_steps + 1):
            take = with_engines(self.roles, 0, partial(self.feed.take, step, clock))
            collected = await stop.or_asked(take)
            if collected is None:
                return
            metrics = await self._step(step, collected, clock)
            alarms = self.sentinels.look(metrics)
            # Logged before it is saved: a run that resumes after this step has its metrics.
            self.log.log(step, metrics, {alarm.metric: alarm.text for alarm in alarms})
            clock = StepClock()
            await self._save(step)
            stop_if_alarmed(step, alarms)

    async def _judge(self) -> Metrics:
        judge = partial(self.evaluation.run, self.roles, 0)
        judged = await with_engines(self.roles, 0, judge)
        if judged.table is not None:
            self.log.table(judged.table)
        return judged.metrics

    async def _step(self, step: int, collected: Collected, clock: StepClock) -> Metrics:
        with clock.phase("score"):
            groups = await self.feed.scores(collected)
            await self.roles.reward.offload()
        rollouts = await self.roles.store.fetch(collected.sampled)
        self.files.append(*self._rows(groups, rollouts))
        used = await self.usage()
        metrics = {**sample_metrics(groups, clock), **used.metrics}
        self.log.spans(step, [*used.spans, clock.whole(step=step)])
        return metrics

    async def _save(self, step: int) -> None:
        """After every step, so that nothing that was judged is lost with the run."""
        state = {
            "order": self.feed.order_at_frontier,
            "sizes": self.files.sizes(),
            "sentinels": self.sentinels.state_dict(),
            "setup": self.setup,
        }
        async with self.store.saving(step, state, [], timeout_s=self.config.timeouts.call_s):
            pass  # the files are the run's

    def _rows(
        self, groups: Sequence[ScoredGroup], rollouts_PG: Sequence[Sequence[Rollout]]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What comes of a step: a row an answer, and a row a pair."""
        samples: list[dict[str, Any]] = []
        pairs: list[dict[str, Any]] = []
        for scored, rollouts_G in zip(groups, rollouts_PG, strict=True):
            prompt = scored.group.prompt
            answers = [
                Judged(
                    text=r.text,
                    score=score.total,
                    truncated=r.finish_reason == "length",
                    messages=r.messages,
                )
                for r, score in zip(rollouts_G, scored.scores_G, strict=True)
            ]
            kept = {k: v for k, v in prompt.columns.items() if k not in OF_OTHER_ANSWERS}
            has_turns = any(r.messages for r in rollouts_G)
            asked = as_chat(prompt.text, "user") if has_turns else prompt.text
            row = {**kept, "prompt": asked, "draw": scored.group.draw}
            samples += [
                {**row, "completion": a.said, "score": a.score, "truncated": a.truncated}
                for a in answers
            ]
            pairs += [{**row, **pair} for pair in pairs_of(answers, self.config.pairs)]
        return samples, pairs


def pairs_of(
    answers: Sequence[Judged], kind: Literal["best_worst", "all"]
) -> Iterator[dict[str, Any]]:
    """Pairs of two answers that differ in score, each once, as columns of a preference row.

    An answer without a score is in none.
    """
    by_text = {answer.text: (s, answer) for answer in answers if (s := answer.score) is not None}
    best_first = sorted(by_text.values(), key=lambda scored: -scored[0])
    if kind == "best_worst":
        best_first = [best_first[0], best_first[-1]] if best_first else []
    for (better, chosen), (worse, rejected) in itertools.combinations(best_first, 2):
        if better > worse:
            yield {
                "chosen": chosen.said,
                "rejected": rejected.said,
                "score_chosen": better,
                "score_rejected": worse,
                "truncated_chosen": chosen.truncated,
                "truncated_rejected": rejected.truncated,
            }
