"""Evaluation on held-out prompts: the same engine and reward, its own prompts and temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.loops.report import failure_metrics, length_metrics, turn_metrics
from rlhf_ray.metrics.clock import StepClock
from rlhf_ray.metrics.log import Table
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.roles.protocols import Roles
from rlhf_ray.rollouts.groups import Sampling, Scoring, Tries
from rlhf_ray.rollouts.seeds import sample_seeds
from rlhf_ray.types import Prompt, Score


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
        self.row_failures = config.failures.row
        self.requests = [
            GenerationRequest(
                prompt=prompt,
                draw=-1 - number,  # no position in the order of the data that is trained
                seeds_G=sample_seeds(
                    seed=config.seed,
                    draw=f"eval/{number}",
                    prompt_id=prompt.prompt_id,
                    num_samples=self.num_samples,
                ),
                temperature=config.eval.temperature,
                max_new_tokens=config.rollout.max_new_tokens,
            )
            for number, prompt in enumerate(prompts)
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
        tries = Tries(self.row_failures)
        groups = await Sampling(roles.rollout, tries).all(self.requests)
        if self.makes_room:
            await roles.rollout.sleep(level=1)
        scoring = Scoring(roles.reward, tries)
        scored = await side_by_side(scoring.score(group) for group in groups)
        scores = [of_group.scores_G for of_group in scored if of_group.scores_G]
        await roles.reward.offload()
        shown = [group for group in groups if group.summaries_G][: self.table_rows]
        rollouts = await roles.store.fetch(shown)
        summaries_B = [summary for group in groups for summary in group.summaries_G]
        metrics = {
            **_rewards(scores),
            **{f"eval/{name}": value for name, value in failure_metrics(scored).items()},
            **length_metrics("eval", summaries_B),
            **{f"eval/{name}": value for name, value in turn_metrics(summaries_B).items()},
        }
        table = Table(
            step=step,
            name="samples",
            columns=("prompt", "response", "reward"),
            rows=[
                # The first sample of each prompt.
                (_text(first.prompt), first.text, _rounded(scores_G[0].total))
                for (first, *_), scores_G in zip(rollouts, scores[: len(shown)], strict=True)
            ],
        )
        return EvaluationResult(metrics=metrics, table=table)


def _rewards(scores_PG: Sequence[Sequence[Score]]) -> dict[str, float]:
    """Means over the samples that a reward applies to, and of each prompt's best of several."""
    totals_PG = [
        [score.total for score in scores_G if score.total is not None] for scores_G in scores_PG
    ]
    scores_B = [score for scores_G in scores_PG for score in scores_G]
    totals_B = [total for totals_G in totals_PG for total in totals_G]
    metrics = {"eval/unscored": float(len(scores_B) - len(totals_B))}
    if totals_B:
        metrics["eval/reward_mean"] = fmean(totals_B)
        if len(scores_PG[0]) > 1:
            metrics["eval/best_of_k"] = fmean(max(totals_G) for totals_G in totals_PG if totals_G)
    known_B = [score for score in scores_B if score.parts]
    for name in known_B[0].parts if known_B else ():
        values = [value for score in known_B if (value := score.parts[name]) is not None]
        if values:
            metrics[f"eval/reward/{name}"] = fmean(values)
    return metrics


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)


def _text(prompt: Prompt) -> str:
    text = prompt.text
    if isinstance(text, str):
        return text
    return "\n".join(f"{message['role']}: {message['content']}" for message in text)
