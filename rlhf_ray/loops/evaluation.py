"""Evaluation on held-out prompts: the same engine and reward, its own prompts and temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.loops.clock import StepClock
from rlhf_ray.loops.groups import rows_by_draw, scored_rows
from rlhf_ray.loops.seeds import sample_seeds
from rlhf_ray.metrics.log import Table
from rlhf_ray.roles import GenerationRequest, Roles
from rlhf_ray.types import Prompt, Rollout, Score


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
                draw=draw,
                seeds_G=sample_seeds(
                    seed=config.seed,
                    draw=f"eval/{draw}",
                    prompt_id=prompt.prompt_id,
                    num_samples=self.num_samples,
                ),
                temperature=config.eval.temperature,
                max_new_tokens=config.rollout.max_new_tokens,
            )
            for draw, prompt in enumerate(prompts)
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
            await roles.rollout.sleep(level=1)
        scores = await roles.reward.score(batch)
        await roles.reward.offload()
        groups = rows_by_draw(batch.summaries_B)
        # The first sample of each prompt.
        rows = [group[0] for group in groups[: self.table_rows]]
        rollouts = await roles.assembler.texts(batch, rows)
        metrics = {
            **_rewards(groups, scores),
            "eval/response_tokens_mean": fmean(s.num_response_tokens for s in batch.summaries_B),
            "eval/truncated_share": fmean(s.finish_reason == "length" for s in batch.summaries_B),
        }
        table = Table(
            step=step,
            name="samples",
            columns=("prompt", "response", "reward"),
            rows=[
                (_text(rollout), rollout.text, _rounded(scores[row].total))
                for row, rollout in zip(rows, rollouts, strict=True)
            ],
        )
        return EvaluationResult(metrics=metrics, table=table)


def _rewards(groups: Sequence[Sequence[int]], scores: Sequence[Score]) -> dict[str, float]:
    """Means over the rows that a reward applies to, and of each prompt's best of several."""
    by_group = [
        [total for row in scored_rows(scores, rows) if (total := scores[row].total) is not None]
        for rows in groups
    ]
    totals = [total for group in by_group for total in group]
    metrics = {"eval/unscored": float(len(scores) - len(totals))}
    if totals:
        metrics["eval/reward_mean"] = fmean(totals)
        if len(groups[0]) > 1:
            metrics["eval/best_of_k"] = fmean(max(group) for group in by_group if group)
    for name in scores[0].parts:
        values = [value for score in scores if (value := score.parts[name]) is not None]
        if values:
            metrics[f"eval/reward/{name}"] = fmean(values)
    return metrics


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)


def _text(rollout: Rollout) -> str:
    text = rollout.prompt.text
    if isinstance(text, str):
        return text
    return "\n".join(f"{message['role']}: {message['content']}" for message in text)
