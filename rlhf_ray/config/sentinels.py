"""What a run watches its own metrics for, and what it does then."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator

from rlhf_ray.config.base import Config

# YAML 1.1 reads a plain `off` as false.
Action: TypeAlias = Annotated[
    Literal["warn", "stop", "off"],
    BeforeValidator(lambda given: "off" if given is False else given),
]


class SentinelsConfig(Config):
    """What metrics are watched for: `warn` says what to look at, `stop` also ends the run.

    It ends after the step, which is logged and, where that is due, saved. `_bound` is the value
    beyond which a sentinel speaks. Means are over steps that have the metric.

    Attributes:
        skipped: More than `skipped_bound` optimiser steps of the step were skipped for a loss or
            gradient that was not finite (`*/skipped_steps`).
        loss: The loss is `loss_bound` deviations above the median of the 20 steps before
            (`*/loss`). A deviation is 1.4826 times the median distance from the median, at least
            2 % of the median.
        grad_norm: The same for the norm of the gradient (`*/grad_norm`).
    """

    skipped: Action = "warn"
    skipped_bound: float = 0.0
    loss: Action = "warn"
    loss_bound: float = 10.0
    grad_norm: Action = "warn"
    grad_norm_bound: float = 20.0


class OnlineSentinelsConfig(SentinelsConfig):
    """What metrics are watched for: `warn` says what to look at, `stop` also ends the run.

    Those of rollouts included.

    Attributes:
        mismatch: Engine and trainer differ by more than `mismatch_bound` nats a token on average,
            on the probe (`mismatch/probe_abs_mean`) or, where the weights that are trained sampled
            them, on the rollouts (`mismatch/logprob_abs_mean`).
        ess: The effective sample size of the correction's weights is below the share `ess_bound`
            (`mismatch/ess`).
        kl: The KL to the reference is above `kl_bound` nats a token (`policy/kl_ref`).
        negative_kl: Its mean over 10 steps is below `negative_kl_bound`, which no KL is: the
            samples are not the policy's, or not scored by it.
        clip: More than the share `clip_bound` of the tokens is clipped (`policy/clip_share`).
        entropy: The mean over 5 steps is below the share `entropy_bound` of that of the first 5
            (`policy/entropy`).
        truncated: More than the share `truncated_bound` of the responses is cut off
            (`rollout/truncated_share`).
        zero_spread: In more than the share `zero_spread_bound` of the groups all samples score
            alike (`rollout/zero_spread_share`).
        constant_reward: The standard deviation of all scores is below `constant_reward_bound` on
            average of 5 steps: they stand at a bound (`rollout/reward_std`).
    """

    mismatch: Action = "warn"
    mismatch_bound: float = 0.1
    ess: Action = "warn"
    ess_bound: float = 0.5
    kl: Action = "warn"
    kl_bound: float = 1.0
    negative_kl: Action = "warn"
    negative_kl_bound: float = -0.01
    clip: Action = "warn"
    clip_bound: float = 0.3
    entropy: Action = "warn"
    entropy_bound: float = 0.1
    truncated: Action = "warn"
    truncated_bound: float = 0.5
    zero_spread: Action = "warn"
    zero_spread_bound: float = 0.75
    constant_reward: Action = "warn"
    constant_reward_bound: float = 1e-6
