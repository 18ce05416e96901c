"""Every metric by name, with its unit and meaning: the same in code, in all files and in W&B.

A metric that is not here cannot be logged, so this page is complete. It ends with what a screen
shows of them; which values it warns of is `rlhf_ray/loops/sentinels.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a metric says. `unit` is empty for counts and shares."""

    unit: str = ""
    text: str

    def __str__(self) -> str:
        return f"{self.text} [{self.unit}]" if self.unit else self.text


_OPTIMISER = {
    "grad_norm": ("", "norm of the gradient before clipping"),
    "lr": ("", "learning rate of the step"),
    "skipped_steps": ("", "optimiser steps skipped for a non-finite loss or gradient"),
    "skipped_in_a_row": ("", "most of them in a row, those just before the update included"),
}

_PHASES = ("generate", "score", "update", "publish")
_ROLES = ("policy", "value", "reference", "reward", "reward_worker", "rollout", "experience")
_SUPERVISED = ("sft", "rm", "dpo")

# By the part of a name before the slash: the rest, its unit and its text.
_GROUPS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "rollout": {
        "reward_mean": (
            "",
            "mean score of all that was sampled in the step and that a reward applied to, "
            "weighted over reward functions",
        ),
        "reward_std": ("", "standard deviation of the scores"),
        "response_tokens_mean": ("tokens", "mean length of a response, the policy's own tokens"),
        "truncated_share": ("", "share of responses cut off at max_new_tokens"),
        "tokens_per_s": ("tokens/s", "generated tokens over the time of generation"),
        "zero_spread_share": (
            "",
            "share of groups whose samples all scored alike; under gdpo in every reward",
        ),
        "unscored": ("", "responses that no reward applied to: they are not trained"),
        "trained_groups": ("", "groups that the step trains"),
        "left_out_groups": (
            "",
            "groups with too few scored responses to be compared, or masked ones alone",
        ),
        "empty_steps_in_a_row": ("", "steps, this one included, that had nothing to train"),
        "refilled_groups": ("", "groups that dynamic sampling sampled in place of others"),
    },
    "environment": {
        "turns_mean": ("", "turns of the policy in a rollout, mean"),
        "turns_max": ("", "most turns of one rollout"),
        "calls_mean": ("", "calls of tools in a rollout, mean"),
        "failed_call_share": (
            "",
            "share of calls that could not be read, or whose tool raised or took too long",
        ),
        "tokens_mean": ("tokens", "what the policy did not write of a rollout's response, mean"),
        "seconds_mean": ("s", "time that a rollout waited for its environment, mean"),
        "failed_hung": (
            "",
            "tries of a group that ended as its environment did not answer in time",
        ),
        "failed_crashed": ("", "tries that ended with the environment's process, or its server"),
        "failed_raised": ("", "tries at which an environment raised"),
        "skipped_groups": ("", "groups without samples, as every try failed: they are not trained"),
    },
    "policy": {
        "loss": ("", "the policy's loss, KL and entropy terms included"),
        "clip_share": ("", "share of tokens whose ratio was clipped"),
        "clamp_share": ("", "share of tokens whose log-ratio was clamped to ±20"),
        "ratio_mean": ("", "mean ratio of new to old probability"),
        "entropy": ("nats/token", "entropy of the policy"),
        "kl_ref": ("nats/token", "KL to the reference model"),
        "kl_clamp_share": ("", "share of tokens whose log-ratio to the reference was clamped"),
        "kl_old": ("nats/token", "KL to the policy before the update"),
        "kl_coefficient": ("", "weight of the KL to the reference"),
        **_OPTIMISER,
    },
    "value": {
        "loss": ("", "the critic's loss"),
        "clip_share": ("", "share of values that were clipped"),
        "explained_variance": ("", "share of the returns' variance that the critic explains"),
        **_OPTIMISER,
    },
    "mismatch": {
        "logprob_abs_max": (
            "nats",
            "largest gap of engine and trainer on one token of probe and rollouts (those of the "
            "first optimiser step, where the engine's stand for the policy's); of the probe alone "
            "with max_staleness, where older weights sampled the rollouts",
        ),
        "logprob_abs_mean": (
            "nats",
            "mean gap on the rollouts of the trainer and what sampled them: the engine, and with "
            "max_staleness the age of its weights",
        ),
        "probe_abs_mean": ("nats", "mean gap on the probe after the publication"),
        "probe_abs_p99": ("nats", "99th percentile of the gaps on the probe"),
        "ess": ("", "effective sample size of the correction's weights, as a share"),
        "cut_share": ("", "share of tokens whose weight was capped or masked"),
        "clamp_share": ("", "share of tokens whose log-ratio was clamped to ±20"),
    },
    "async": {
        "staleness_mean": ("versions", "mean age of the weights that sampled a token"),
        "staleness_max": ("versions", "largest age of the weights that sampled a token"),
        "groups_ahead": ("", "groups of later steps that are sampled already"),
        "groups_running": ("", "groups of later steps that are being sampled"),
    },
    "recovery": {
        "restarts": ("", "times that a dead role was started again so far"),
        "replayed_steps": (
            "",
            "steps done again since the step before, as policy, value or engines had died",
        ),
        "seconds": ("s", "that this took: starting, restoring and doing steps again"),
    },
    "sync": {
        "seconds": ("s", "duration of the publication of weights"),
        "bytes": ("bytes", "size of the published weights"),
    },
    "time": {
        "generate": ("s", "rollouts, those that dynamic sampling leaves out included"),
        "score": ("s", "rewards, values and log-probabilities"),
        "update": ("s", "optimiser steps of policy and value"),
        "publish": ("s", "weights to the engines, and the probe"),
        "offload": ("s", "models' way from GPUs that engines share to the host, in all phases"),
        "reload": ("s", "their way back, in all phases"),
        "evaluate": ("s", "evaluation"),
        "checkpoint": ("s", "writing the checkpoint after the step before"),
        "step": ("s", "since the step before was logged: evaluation and checkpoint included"),
        "wait_rollout": ("s", "learner idle for want of rollouts"),
        "wait_update": ("s", "engines idle for want of an update"),
    },
    "share": {phase: ("", f"share of the step in time/{phase}") for phase in _PHASES},
    "wait": {role: ("s", f"{role} idle, since the step before was logged") for role in _ROLES},
    "memory": {
        f"{role}_peak_gb": ("GB", f"most memory that one rank of {role} has taken so far")
        for role in _ROLES
    },
    "engine": {
        "running_mean": ("requests", "requests that an engine worked on, mean of its steps"),
        "queue_mean": ("requests", "requests that waited for an engine, mean of its steps"),
        "queue_max": ("requests", "most requests that waited for one engine"),
        "kv_cache_share_max": ("", "largest share of an engine's KV cache in use"),
        "preemptions": ("", "requests put back because the KV cache was full"),
    },
    "perf": {
        "tokens_per_s": ("tokens/s", "trained tokens, prompts included, over the whole step"),
        "score_tokens_per_s": ("tokens/s", "the same tokens over the time of scoring"),
        "update_tokens_per_s": ("tokens/s", "the same tokens over the time of the update"),
        "samples_per_s": ("samples/s", "sampled rollouts, or rows, over the whole step"),
        "mfu": ("", "model FLOPs utilisation of the update: share of the hardware's peak"),
        "bubble_share": ("", "share of the step in which the policy had no work: wait/policy"),
    },
    "data": {
        "epoch": ("epochs", "passes over the data so far"),
    },
    "sft": {
        "loss": ("nats/token", "the loss that is trained, by loss_type"),
        "nll": ("nats/token", "negative log-likelihood of a trained token; with nll the loss"),
        "entropy": ("nats/token", "entropy of the model"),
        "token_accuracy": ("", "share of trained tokens that the model would have chosen"),
        **_OPTIMISER,
    },
    "reward": {
        "truncated_share": ("", "share of texts of which the reward model saw the beginning alone"),
        "failed_hung": (
            "",
            "tries of groups in which a reward took too long",
        ),
        "failed_crashed": ("", "tries in which a reward ended its process"),
        "failed_raised": ("", "tries in which a reward raised, or gave no numbers"),
        "skipped_groups": ("", "groups of which every try failed: they have no score"),
    },
    "rm": {
        "loss": ("", "the reward model's loss, centring included"),
        "accuracy": ("", "share of pairs whose better answer scores higher"),
        "margin": ("", "mean gap of the better answer's score to the worse one's"),
        "reward_mean": ("", "mean score of all answers"),
        "reward_chosen": ("", "mean score of the best answers"),
        "reward_rejected": ("", "mean score of the others"),
        "calibration_error": ("", "expected gap of the stated probability to the accuracy"),
        "aux_loss": ("", "load-balancing loss of a mixture of experts"),
        **_OPTIMISER,
    },
    "dpo": {
        "loss": ("", "the weighted sum of the losses"),
        "clamp_share": ("", "share of answers whose log-ratio was clamped in a divergence"),
        "kl": ("nats", "KTO's estimate of the KL to the reference, an answer"),
        "aux_loss": ("", "load-balancing loss of a mixture of experts"),
        **_OPTIMISER,
    },
    "rewards": {
        "chosen": ("", "mean implicit reward of the chosen answers"),
        "rejected": ("", "mean implicit reward of the rejected answers"),
        "accuracies": ("", "share of pairs whose chosen answer has the higher reward"),
        "margins": ("", "mean gap of the two implicit rewards"),
    },
    "logps": {
        "chosen": ("nats", "mean log-probability of a chosen answer"),
        "rejected": ("nats", "mean log-probability of a rejected answer"),
    },
}

NAMES: Mapping[str, Meaning] = {
    f"{group}/{name}": Meaning(unit=unit, text=text)
    for group, meanings in _GROUPS.items()
    for name, (unit, text) in meanings.items()
}

PREFIXES: Mapping[str, Meaning] = {
    "reward/": Meaning(text="mean of one reward function, by its name"),
    "eval/": Meaning(
        text="on held-out data: any of the names above, such as `eval/reward_mean`; "
        "`eval/unscored`: responses that no reward applied to; "
        "`eval/best_of_k`: mean over prompts of the best of `eval.samples_per_prompt` samples"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table on a terminal.

    Attributes:
        title: Its head.
        names: The metrics that it may show; a run has the first of them that it logs.
        has_change: Whether the change since the step shown before stands beside the value.
        beside: A metric without which it says nothing.
    """

    title: str
    names: Sequence[str]
    has_change: bool = False
    beside: str = ""


# Logged by runs that sample ahead of training alone.
AHEAD = "async/groups_ahead"

# What matters most comes first: a terminal has as many as fit beside each other.
COLUMNS: Sequence[Column] = (
    Column(title="reward", names=["rollout/reward_mean"], has_change=True),
    Column(title="loss", names=["sft/loss", "rm/loss", "dpo/loss"], has_change=True),
    Column(title="best of k", names=["best_of_k"]),  # of evaluations alone
    Column(title="accuracy", names=["rm/accuracy", "rewards/accuracies", "sft/token_accuracy"]),
    Column(title="KL", names=["policy/kl_ref", "dpo/kl"]),
    Column(title="entropy", names=["policy/entropy", "sft/entropy"]),
    Column(title="length", names=["rollout/response_tokens_mean"]),
    Column(title="mismatch", names=["mismatch/logprob_abs_max"]),
    Column(title="tokens/s", names=["perf/tokens_per_s", "rollout/tokens_per_s"]),
    # 0 in each step of a run that does not sample ahead.
    Column(title="staleness", names=["async/staleness_mean"], beside=AHEAD),
    Column(title="grad norm", names=["policy/grad_norm", *(f"{j}/grad_norm" for j in _SUPERVISED)]),
    Column(title="margin", names=["rm/margin", "rewards/margins"]),
    Column(title="seconds", names=["time/step"]),
)

# Of these, a plain line has what the step has.
LINE: Sequence[str] = (
    "rollout/reward_mean",
    "eval/reward_mean",
    "policy/kl_ref",
    "mismatch/logprob_abs_max",
    "sft/loss",
    "rm/loss",
    "dpo/loss",
    "eval/loss",
    "eval/accuracy",
    "eval/rewards/accuracies",
    "time/step",
)


def held_out_names(column: Column) -> list[str]:
    """What an evaluation calls the metrics of a column: `eval/loss` of `sft/loss`, for instance."""
    return [f"eval/{each}" for name in column.names for each in (name, name.partition("/")[2])]


def meaning_of(name: str) -> Meaning:
    """What a documented metric says."""
    if name in NAMES:
        return NAMES[name]
    return next(meaning for prefix, meaning in PREFIXES.items() if name.startswith(prefix))


def prometheus_name(name: str) -> str:
    """`policy/kl_ref` is `rlhf_policy_kl_ref` there: Prometheus allows no slashes."""
    return "rlhf_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)


def check_names(names: Iterable[str]) -> None:
    """Refuse a metric that nobody could look up.

    Raises:
        ValueError: Names it.
    """
    for name in names:
        if name not in NAMES and not any(name.startswith(p) and name != p for p in PREFIXES):
            raise ValueError(f"metric {name!r} must be documented in rlhf_ray/metrics/names.py")
