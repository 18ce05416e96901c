"""Evaluation on held-out prompts: the same engine and reward, its own prompts and temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.loops.clock import StepClock
from rlhf_ray.loops.seeds import sample_seeds
from rlhf_ray.metrics.log import Table
from rlhf_ray.roles import GenerationRequest, Roles
from rlhf_ray.types import Prompt, Rollout


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """One evaluation.

    Attributes:
        metrics: Names with `eval/` in front, and `time/evaluate`.
        table: A few samples; None without held-out prompts.
    """

    metrics: dict[str, float]
    table: Table | None


class Evaluation:
    """Responses to each held-out prompt; the same seeds every time, so that runs compare."""

    def __init__(self, config: OnlineConfig, prompts: Sequence[Prompt]) -> None:
        """Keep the prompts; none makes every evaluation empty."""
        self.num_samples = config.eval.samples_per_prompt
        self.makes_room = config.scores_on_engines_gpus
        self.requests = [
            GenerationRequest(
                prompt=prompt,
                seeds_G=sample_seeds(
                    seed=config.seed,
                    draw="eval",
                    prompt_id=prompt.prompt_id,
                    num_samples=self.num_samples,
                ),
                temperature=config.eval.temperature,
                max_new_tokens=config.rollout.max_new_tokens,
            )
            for prompt in prompts
        ]
        self.table_rows = config.eval.table_rows

    async def run(self, roles: Roles, step: int) -> EvaluationResult:
        """Sample, score and average."""
        if not self.requests:
            return EvaluationResult(metrics={}, table=None)
        with StepClock().phase("evaluate") as timed:
            result = await self._run(roles, step)
        result.metrics["time/evaluate"] = timed.seconds
        return result

    async def _run(self, roles: Roles, step: int) -> EvaluationResult:
        batch = await roles.rollout.generate(self.requests)
        if self.makes_room:
            await roles.rollout.sleep()
        scores = await roles.reward.score(batch)
        # The first sample of each prompt.
        rows = range(0, len(scores), self.num_samples)[: self.table_rows]
        rollouts = await roles.assembler.texts(batch, rows)
        metrics = {
            "eval/reward_mean": fmean(score.total for score in scores),
            "eval/response_tokens_mean": fmean(s.num_response_tokens for s in batch.summaries_B),
            "eval/truncated_share": fmean(s.finish_reason == "length" for s in batch.summaries_B),
        }
        if self.num_samples > 1:
            metrics["eval/best_of_k"] = _best_of_k([s.total for s in scores], self.num_samples)
        for name in scores[0].parts:
            values = [score.parts[name] for score in scores]
            applicable = [value for value in values if value is not None]
            if applicable:
                metrics[f"eval/reward/{name}"] = fmean(applicable)
        table = Table(
            step=step,
            name="samples",
            columns=("prompt", "response", "reward"),
            rows=[
                (_text(rollout), rollout.text, round(scores[row].total, 4))
                for row, rollout in zip(rows, rollouts, strict=True)
            ],
        )
        return EvaluationResult(metrics=metrics, table=table)


def _best_of_k(scores_B: Sequence[float], num_samples: int) -> float:
    """Mean over prompts of the best of each one's samples, which stand side by side."""
    firsts = range(0, len(scores_B), num_samples)
    return fmean(max(scores_B[first : first + num_samples]) for first in firsts)


def _text(rollout: Rollout) -> str:
    text = rollout.prompt.text
    if isinstance(text, str):
        return text
    return "\n".join(f"{message['role']}: {message['content']}" for message in text)
