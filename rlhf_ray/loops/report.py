"""What a step says of its rollouts and its time, from lengths, scores and clocks alone."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

from rlhf_ray.algorithms.dynamic_sampling import has_spread
from rlhf_ray.loops.clock import StepClock
from rlhf_ray.loops.collection import Collected
from rlhf_ray.loops.groups import compared_scores, rows_by_draw, scored_rows
from rlhf_ray.metrics.flops import peak_flops, update_mfu
from rlhf_ray.roles import Hardware, Metrics, RolloutBatch
from rlhf_ray.types import Score


def sample_metrics(
    batch: RolloutBatch, scores: Sequence[Score], clock: StepClock, *, apart: bool = False
) -> dict[str, float]:
    """`rollout/*`, `reward/*`, `time/*` and `share/*` of sampled and scored rollouts.

    Args:
        batch: All of them.
        scores: Theirs.
        clock: Of the step.
        apart: Whether each reward is compared by itself, not their sum.
    """
    summaries = batch.summaries_B
    num_generated = batch.num_response_tokens
    return {
        **_rewards(batch, scores, apart=apart),
        "rollout/response_tokens_mean": num_generated / len(summaries),
        "rollout/truncated_share": fmean(s.finish_reason == "length" for s in summaries),
        "rollout/tokens_per_s": num_generated / clock.seconds["generate"],
        **_parts(scores),
        **time_metrics(clock, num_samples=len(summaries)),
    }


def time_metrics(clock: StepClock, *, num_samples: int) -> dict[str, float]:
    """`time/*`, `share/*` and samples a second; to be called when the step is over."""
    step_s = clock.elapsed_s()
    return {
        **{f"time/{phase}": seconds for phase, seconds in clock.seconds.items()},
        **{f"share/{phase}": seconds / step_s for phase, seconds in clock.seconds.items()},
        "time/step": step_s,
        "perf/samples_per_s": num_samples / step_s,
    }


def rollout_metrics(
    collected: Collected,
    scores: Sequence[Score],
    trained: RolloutBatch,
    used: Metrics,
    clock: StepClock,
    *,
    version: int,
    apart: bool,
) -> dict[str, float]:
    """`rollout/*`, `reward/*`, `async/*`, `time/*`, `share/*` and `perf/*` of one step.

    Args:
        collected: The step's rollouts.
        scores: Of all that was sampled.
        trained: What is left of it for the update, perhaps nothing.
        used: What the processes needed in the step.
        clock: Of the step, which is over.
        version: Of the weights when the step began.
        apart: As in `sample_metrics`.
    """
    seconds = clock.seconds
    num_groups = len(rows_by_draw(trained.summaries_B))
    num_kept = len(rows_by_draw(collected.batch.summaries_B))
    told = sample_metrics(collected.sampled, scores, clock, apart=apart)
    if "wait/policy" in used:
        told["perf/bubble_share"] = used["wait/policy"] / told["time/step"]
    return {
        **told,
        "rollout/trained_groups": float(num_groups),
        "rollout/left_out_groups": float(num_kept - num_groups),
        "rollout/refilled_groups": float(collected.num_refilled),
        **(_staleness(trained, version) if num_groups else {}),
        "time/wait_rollout": seconds["generate"],
        "time/wait_update": seconds["score"] + seconds["update"],
        "perf/tokens_per_s": trained.num_tokens / told["time/step"],
        "perf/score_tokens_per_s": trained.num_tokens / seconds["score"],
        "perf/update_tokens_per_s": trained.num_tokens / seconds["update"],
    }


def _staleness(batch: RolloutBatch, version: int) -> dict[str, float]:
    summaries = batch.summaries_B
    num_tokens = sum(s.num_response_tokens for s in summaries)
    return {
        "async/staleness_mean": version - sum(s.version_sum for s in summaries) / num_tokens,
        "async/staleness_max": float(max(version - s.version_min for s in summaries)),
    }


def _rewards(batch: RolloutBatch, scores: Sequence[Score], *, apart: bool) -> dict[str, float]:
    """Of the rows that have a score; those that have none are counted."""
    totals = [score.total for score in scores if score.total is not None]
    told = {"rollout/unscored": float(len(scores) - len(totals))}
    if not totals:
        return told
    groups = [scored_rows(scores, rows) for rows in rows_by_draw(batch.summaries_B)]
    return told | {
        "rollout/reward_mean": fmean(totals),
        "rollout/reward_std": pstdev(totals),
        "rollout/zero_spread_share": fmean(
            not has_spread(compared_scores([scores[row] for row in rows], apart=apart))
            for rows in groups
            if rows
        ),
    }


def _parts(scores: Sequence[Score]) -> dict[str, float]:
    means = {}
    for name in scores[0].parts:
        values = [value for score in scores if (value := score.parts[name]) is not None]
        if values:
            means[f"reward/{name}"] = fmean(values)
    cut = [score.is_cut for score in scores if score.is_cut is not None]
    return means | ({"reward/truncated_share": fmean(cut)} if cut else {})


def utilisation(hardware: Hardware, *, num_flops: float, seconds: float) -> dict[str, float]:
    """`perf/mfu` of an update, where the device's peak is known."""
    peak = peak_flops(hardware.device_name)
    if peak is None:
        return {}
    share = update_mfu(
        num_flops=num_flops, seconds=seconds, num_devices=hardware.num_devices, peak=peak
    )
    return {"perf/mfu": share}
