"""What a step says of its rollouts and its time, and when what it says ends the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean, pstdev
from typing import Literal

from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.run import JobConfig
from rlhf_ray.errors import FAILURE_CAUSES, FailureCause, TrainingStopped
from rlhf_ray.metrics.clock import StepClock
from rlhf_ray.metrics.usage import peak_flops, update_mfu
from rlhf_ray.roles.groups import RolloutGroup, ScoredGroup
from rlhf_ray.roles.reports import Hardware, Metrics, Publication
from rlhf_ray.rollouts.groups import has_spread, summaries_of, trainable
from rlhf_ray.types import RolloutSummary, Score


def sample_metrics(
    groups: Sequence[ScoredGroup],
    clock: StepClock,
    *,
    apart: bool = False,
    runs_ahead: bool = False,
) -> dict[str, float]:
    """`rollout/*`, `reward/*`, `time/*` and `share/*` of all groups of a step.

    Where rewards are told `apart`, each is compared by itself, not their sum. Where generation
    `runs_ahead` it takes the whole step, and of `time/generate` only what is waited for.
    """
    generated_s = clock.elapsed_s() if runs_ahead else clock.seconds["generate"]
    summaries_B = [summary for scored in groups for summary in scored.group.summaries_G]
    num_generated = sum(s.num_action_tokens for s in summaries_B)
    return {
        **_rewards(groups, apart=apart),
        **length_metrics("rollout", summaries_B),
        "rollout/tokens_per_s": num_generated / generated_s,
        **turn_metrics(summaries_B),
        **_parts([score for g in groups if not g.is_skipped for score in g.scores_G]),
        **failure_metrics(groups),
        **time_metrics(clock, num_samples=len(summaries_B)),
    }


def length_metrics(
    section: Literal["rollout", "eval"], summaries_B: Sequence[RolloutSummary]
) -> dict[str, float]:
    """Means of responses; nothing where there are none."""
    if not summaries_B:
        return {}
    return {
        f"{section}/response_tokens_mean": fmean(s.num_action_tokens for s in summaries_B),
        f"{section}/truncated_share": fmean(s.finish_reason == "length" for s in summaries_B),
    }


def failure_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """`failed_*`, by cause, and `skipped_groups`, of environments and of rewards.

    Nothing of those at which nothing failed.
    """
    skipped = [scored for scored in groups if scored.is_skipped]
    num_unsampled = sum(not scored.group.summaries_G for scored in skipped)
    return {
        **_failures("environment", (scored.group.failed for scored in groups), num_unsampled),
        **_failures("reward", (scored.failed for scored in groups), len(skipped) - num_unsampled),
    }


def _failures(
    section: Literal["environment", "reward"],
    failed_P: Iterable[tuple[FailureCause, ...]],
    num_skipped: int,
) -> dict[str, float]:
    failed = Counter(cause for causes in failed_P for cause in causes)
    if not failed:
        return {}
    return {
        **{f"{section}/failed_{cause}": float(failed[cause]) for cause in FAILURE_CAUSES},
        f"{section}/skipped_groups": float(num_skipped),
    }


def turn_metrics(summaries_B: Sequence[RolloutSummary]) -> dict[str, float]:
    """`environment/*` of the rollouts that had an environment; nothing without one."""
    acted_B = [s for s in summaries_B if s.num_turns]
    if not acted_B:
        return {}
    num_calls = sum(s.num_calls for s in acted_B)
    num_failed_calls = sum(s.num_failed_calls for s in acted_B)
    return {
        "environment/turns_mean": fmean(s.num_turns for s in acted_B),
        "environment/turns_max": float(max(s.num_turns for s in acted_B)),
        "environment/calls_mean": num_calls / len(acted_B),
        **({"environment/failed_call_share": num_failed_calls / num_calls} if num_calls else {}),
        "environment/tokens_mean": fmean(
            s.num_response_tokens - s.num_action_tokens for s in acted_B
        ),
        "environment/seconds_mean": fmean(s.environment_s for s in acted_B),
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
    sampled: Sequence[ScoredGroup],
    trained: Sequence[RolloutGroup],
    used: Metrics,
    clock: StepClock,
    *,
    num_kept: int,
    num_refilled: int,
    version: int,
    apart: bool,
    runs_ahead: bool = False,
) -> dict[str, float]:
    """`rollout/*`, `reward/*`, `async/*`, `time/*`, `share/*` and `perf/*` of one step.

    The step is over, and perhaps nothing was left to be `trained`. Dynamic sampling let `num_kept`
    groups through and sampled `num_refilled` in place of others. The step began with `version`.
    """
    seconds = clock.seconds
    num_tokens = sum(summary.num_tokens for group in trained for summary in group.summaries_G)
    metrics = sample_metrics(sampled, clock, apart=apart, runs_ahead=runs_ahead)
    if "wait/policy" in used:
        metrics["perf/bubble_share"] = used["wait/policy"] / metrics["time/step"]
    return {
        **metrics,
        "rollout/trained_groups": float(len(trained)),
        "rollout/left_out_groups": float(num_kept - len(trained)),
        "rollout/refilled_groups": float(num_refilled),
        **(_staleness(trained, version) if trained else {}),
        "time/wait_rollout": seconds["generate"],
        "time/wait_update": seconds["score"] + seconds["update"],
        "perf/tokens_per_s": num_tokens / metrics["time/step"],
        "perf/score_tokens_per_s": num_tokens / seconds["score"],
        "perf/update_tokens_per_s": num_tokens / seconds["update"],
    }


def _staleness(groups: Sequence[RolloutGroup], version: int) -> dict[str, float]:
    summaries_B = [summary for group in groups for summary in group.summaries_G]
    num_tokens = sum(s.num_action_tokens for s in summaries_B)
    return {
        "async/staleness_mean": version - sum(s.version_sum for s in summaries_B) / num_tokens,
        "async/staleness_max": float(max(version - s.version_min for s in summaries_B)),
    }


def _rewards(groups: Sequence[ScoredGroup], *, apart: bool) -> dict[str, float]:
    """Of the samples that have a score; those that have none are counted."""
    scores_B = [score for scored in groups for score in scored.scores_G]
    totals = [score.total for score in scores_B if score.total is not None]
    metrics = {"rollout/unscored": float(len(scores_B) - len(totals))}
    if not totals:
        return metrics
    return metrics | {
        "rollout/reward_mean": fmean(totals),
        "rollout/reward_std": pstdev(totals),
        "rollout/zero_spread_share": fmean(
            not has_spread(scored.scores_G, apart=apart)
            for scored in trainable(groups, smallest_group=1)
        ),
    }


def _parts(scores: Sequence[Score]) -> dict[str, float]:
    means: dict[str, float] = {}
    for name in scores[0].parts if scores else ():
        values = [value for score in scores if (value := score.parts[name]) is not None]
        if values:
            means[f"reward/{name}"] = fmean(values)
    cut = [score.is_cut for score in scores if score.is_cut is not None]
    return means | ({"reward/truncated_share": fmean(cut)} if cut else {})


def publication_metrics(
    published: Publication, of_rollouts: Metrics, *, runs_ahead: bool = False
) -> dict[str, float]:
    """`sync/*` of a publication, and `mismatch/*` of its probe beside that of the rollouts.

    Where generation `runs_ahead`, the probe alone compares engine and trainer: what older weights
    sampled differs by their age.
    """
    of_both = [published.logprob_abs_max]
    if not runs_ahead:
        of_both.append(of_rollouts.get("mismatch/logprob_abs_max", 0.0))
    return {
        "mismatch/logprob_abs_max": max(of_both),
        "mismatch/probe_abs_mean": published.logprob_abs_mean,
        "mismatch/probe_abs_p99": published.logprob_abs_p99,
        "sync/seconds": published.seconds,
        "sync/bytes": float(published.num_bytes),
    }


def prefixed(prefix: str, metrics: Metrics) -> dict[str, float]:
    """A learner's metrics by their whole names; those that have a slash are whole already.

    Such are what TRL's users know without the job in front, and `mismatch/*`.
    """
    return {name if "/" in name else f"{prefix}/{name}": value for name, value in metrics.items()}


def update_flops(hardware: Hardware, trained: Sequence[RolloutGroup]) -> float:
    """Floating-point operations of one pass of the policy's update over all samples of groups."""
    summaries_B = summaries_of(trained)
    # Tokens of prompts that are not computed for each of a group's samples.
    again_B = [s.num_prompt_tokens for group in trained for s in group.summaries_G[1:]]
    return hardware.flops.of(
        [summary.num_tokens for summary in summaries_B],
        num_scored=sum(summary.num_action_tokens for summary in summaries_B),
        again_B=again_B if hardware.shares_prompts else [],
    )


def utilisation(hardware: Hardware, *, num_flops: float, seconds: float) -> dict[str, float]:
    """`perf/mfu` of an update, where the device's peak is known."""
    peak = peak_flops(hardware.device_name)
    if peak is None:
        return {}
    share = update_mfu(
        num_flops=num_flops, seconds=seconds, num_devices=hardware.num_devices, peak=peak
    )
    return {"perf/mfu": share}


def stop_if_diverged(step: int, metrics: Metrics, config: JobConfig) -> None:
    """Look at what the trained roles say of their optimiser steps.

    Raises:
        TrainingStopped: One of them skipped as many in a row as the job allows, or more.
    """
    limit = config.nonfinite_steps_to_stop
    for name, num_skipped in metrics.items():
        role, _, leaf = name.rpartition("/")
        if leaf == "skipped_in_a_row" and num_skipped >= limit:
            raise TrainingStopped(
                f"step {step}: loss or gradient was not finite in {num_skipped:.0f} optimiser "
                f"steps in a row ({role}; nonfinite_steps_to_stop is {limit}); what they were to "
                f"learn from is in {config.run_dir}/skipped"
            )


def stop_if_empty(step: int, num_in_a_row: int, config: OnlineConfig) -> None:
    """Look at how many steps in a row had nothing to train.

    Raises:
        TrainingStopped: As many as the job allows, or more.
    """
    if num_in_a_row >= config.empty_steps_to_stop:
        raise TrainingStopped(
            f"step {step}: nothing was left to train in {num_in_a_row} steps in a row "
            f"(empty_steps_to_stop is {config.empty_steps_to_stop}): rewards gave None for too "
            "many rollouts, dynamic sampling found no group whose scores differ, or all were cut "
            "off (algorithm.truncated: mask)"
        )
