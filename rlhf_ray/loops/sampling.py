"""Sampling without training: answers and their scores to files, and pairs of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.data.loader import ResumableOrder
from rlhf_ray.loops.clock import StepClock
from rlhf_ray.loops.collection import Collector
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.report import sample_metrics
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.roles import Roles
from rlhf_ray.types import Prompt, Rollout, Score

# By these columns a row would be taken for one with the prompt's own answers.
OF_OTHER_ANSWERS = {
    "answers", "ranks", "scores", "chosen", "rejected", "margin", "score_chosen", "score_rejected",
    "label", "completion", "conversations", "messages", "instruction", "output", "input", "target",
}  # fmt: skip

SAMPLES, PAIRS = "samples.jsonl", "pairs.jsonl"


@dataclass
class Written:
    """Rows of the two files so far."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)


class SampleLoop:
    """Draws prompts, has them answered and judged, and writes what came of it."""

    def __init__(
        self,
        config: SampleConfig,
        roles: Roles,
        prompts: Sequence[Prompt],
        evaluation: Evaluation,
        log: MetricsLog,
    ) -> None:
        """Put the parts together; `run` starts them."""
        self.config, self.roles, self.evaluation, self.log = config, roles, evaluation, log
        self.order = ResumableOrder(len(prompts), seed=config.seed, shuffle=config.data.shuffle)
        self.collector = Collector(
            config, prompts, self.order, engine=roles.rollout, reward=roles.reward
        )
        self.written = Written()

    async def run(self) -> None:
        """Judge the policy on held-out prompts, then sample; the files grow with every step."""
        await self.roles.rollout.wake_up()
        await self.roles.policy.publish(0)
        judged = await self.evaluation.run(self.roles, 0)
        if judged.table is not None:
            self.log.table(judged.table)
        self.log.log(0, judged.metrics)
        for step in range(1, self.config.total_steps + 1):
            clock = StepClock()
            with clock.phase("generate"):
                collected = await self.collector.collect(step)
            with clock.phase("score"):
                scores = await collected.scores
            rows = range(len(scores))
            self._keep(await self.roles.assembler.texts(collected.batch, rows), scores)
            # After every step, so that nothing that was judged is lost with the run.
            _write(Path(self.config.run_dir) / SAMPLES, self.written.samples)
            _write(Path(self.config.run_dir) / PAIRS, self.written.pairs)
            self.log.log(step, sample_metrics(collected.batch, scores, clock))

    def _keep(self, rollouts: Sequence[Rollout], scores: Sequence[Score]) -> None:
        group = self.config.samples_per_prompt
        for first in range(0, len(rollouts), group):
            answers = [
                (rollout.text, score.total)
                for rollout, score in zip(
                    rollouts[first : first + group], scores[first : first + group], strict=True
                )
            ]
            prompt = rollouts[first].prompt
            kept = {k: v for k, v in prompt.columns.items() if k not in OF_OTHER_ANSWERS}
            row = {**kept, "prompt": prompt.text}
            self.written.samples += [
                {**row, "completion": text, "score": score} for text, score in answers
            ]
            self.written.pairs += [{**row, **pair} for pair in pairs_of(answers, self.config.pairs)]


def pairs_of(
    answers: Sequence[tuple[str, float]], kind: Literal["best_worst", "all"]
) -> Iterator[dict[str, Any]]:
    """Pairs of two answers that differ in score, each once, as columns of a preference row."""
    best_first = sorted(dict(answers).items(), key=lambda answer: -answer[1])
    several = [(best_first[0], best_first[-1])] if kind == "best_worst" else None
    for (chosen, high), (rejected, low) in several or itertools.combinations(best_first, 2):
        if high > low:
            yield {
                "chosen": chosen,
                "rejected": rejected,
                "score_chosen": high,
                "score_rejected": low,
            }


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    aside = path.with_name(f".{path.name}")
    # `str` for what JSON lacks: parquet files have dates and decimals.
    lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    aside.write_text("".join(lines), encoding="utf-8")
    aside.replace(path)
