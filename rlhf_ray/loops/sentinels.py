"""Sentinels look at every step's metrics: is the run ill, what does that mean, what to look at.

Bounds, and what is done beyond them, are `rlhf_ray/config/sentinels.py`; here is what each looks
at. The screen shows what they say; a run stops where that is wanted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, Literal, TypeAlias

from rlhf_ray.config.sentinels import SentinelsConfig
from rlhf_ray.errors import TrainingStopped
from rlhf_ray.metrics.names import AHEAD

# Of normal noise this multiple of the median distance from the median is the standard deviation.
DEVIATION = 1.4826
# A curve that hardly moves has next to no deviation: smaller jumps than these are none.
LEAST_DEVIATION = 0.02


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A metric is beyond a sentinel's bound.

    Attributes:
        metric: Its name.
        text: Value, bound, what it means and what to look at.
        action: What is to be done.
    """

    metric: str
    text: str
    action: Literal["warn", "stop"]


@dataclass(kw_only=True)
class History:
    """The last values of a metric, and the mean of as many at the start of the run."""

    last: deque[float]
    start: float | None = None

    def add(self, value: float) -> bool:
        """Whether there are enough to judge."""
        self.last.append(value)
        is_full = len(self.last) == self.last.maxlen
        if is_full and self.start is None:
            self.start = fmean(self.last)
        return is_full


# (history, bound) -> what is compared, whether it is beyond the bound.
Judge: TypeAlias = Callable[[History, float], tuple[float, bool]]


def _above(history: History, bound: float) -> tuple[float, bool]:
    mean = fmean(history.last)
    return mean, mean > bound


def _below(history: History, bound: float) -> tuple[float, bool]:
    mean = fmean(history.last)
    return mean, mean < bound


def _below_share_of_start(history: History, bound: float) -> tuple[float, bool]:
    mean = fmean(history.last)
    return mean, mean < bound * (history.start or 0.0)


def _jumped(history: History, bound: float) -> tuple[float, bool]:
    *before, now = history.last
    middle = median(before)
    deviation = DEVIATION * median(abs(value - middle) for value in before)
    return now, now - middle > bound * max(deviation, LEAST_DEVIATION * abs(middle))


@dataclass(frozen=True, kw_only=True)
class Sentinel:
    """What one looks at. `window` counts steps, `bound` is in words with the bound in braces."""

    metrics: Sequence[str]
    judge: Judge
    window: int = 1
    bound: str
    means: str
    look_at: str


# Where older weights sampled, their age is in it, and the probe alone tells of a disagreement.
_ON_ROLLOUTS = "mismatch/logprob_abs_mean"
_TRAINED = ("policy", "value", "sft", "rm", "dpo")
_JUMP = "{:g} deviations above the median of the 20 steps before"

SENTINELS: Mapping[str, Sentinel] = {
    "skipped": Sentinel(
        metrics=[f"{role}/skipped_steps" for role in _TRAINED],
        judge=_above,
        bound="above {:g}",
        means="loss or gradient was not finite",
        look_at="the batches in skipped/, the learning rate, the dtype",
    ),
    "loss": Sentinel(
        metrics=[f"{role}/loss" for role in _TRAINED],
        judge=_jumped,
        window=21,
        bound=_JUMP,
        means="the loss jumped",
        look_at="the step's rows or rollouts, the learning rate",
    ),
    "grad_norm": Sentinel(
        metrics=[f"{role}/grad_norm" for role in _TRAINED],
        judge=_jumped,
        window=21,
        bound=_JUMP,
        means="the gradient jumped",
        look_at="the step's rows or rollouts, optim.max_grad_norm, the learning rate",
    ),
    "mismatch": Sentinel(
        metrics=[_ON_ROLLOUTS, "mismatch/probe_abs_mean"],
        judge=_above,
        bound="above {:g} nats",
        means="engine and trainer disagree",
        look_at="mismatch/probe_abs_mean (weights) beside it (sampling), both sides in float32",
    ),
    "ess": Sentinel(
        metrics=["mismatch/ess"],
        judge=_below,
        bound="below {:g}",
        means="few samples carry the update: the policy is far from what sampled it",
        look_at="mismatch/logprob_abs_mean, async/staleness_mean, algorithm.correction",
    ),
    "kl": Sentinel(
        metrics=["policy/kl_ref"],
        judge=_above,
        bound="above {:g} nats a token",
        means="far from the reference",
        look_at="sampled responses, algorithm.kl.coefficient, the learning rate",
    ),
    "negative_kl": Sentinel(
        metrics=["policy/kl_ref"],
        judge=_below,
        window=10,
        bound="below {:g} on average of 10 steps",
        means="no KL is negative: samples are not the policy's own",
        look_at="mismatch/logprob_abs_mean, the reference's model and dtype, the stop tokens",
    ),
    "clip": Sentinel(
        metrics=["policy/clip_share"],
        judge=_above,
        bound="above {:g}",
        means="the policy moves far in one step",
        look_at="the learning rate, algorithm.epochs and algorithm.minibatches",
    ),
    "entropy": Sentinel(
        metrics=["policy/entropy"],
        judge=_below_share_of_start,
        window=5,
        bound="below {:g} of the start's, on average of 5 steps",
        means="the policy hardly explores",
        look_at="sampled responses, algorithm.entropy_coefficient, rollout.temperature",
    ),
    "truncated": Sentinel(
        metrics=["rollout/truncated_share"],
        judge=_above,
        bound="above {:g}",
        means="most responses are cut off",
        look_at="sampled responses (endless repetition?), rollout.max_new_tokens, the end token",
    ),
    "zero_spread": Sentinel(
        metrics=["rollout/zero_spread_share"],
        judge=_above,
        bound="above {:g}",
        means="most groups teach nothing",
        look_at="how hard the prompts are, samples_per_prompt, algorithm.dynamic_sampling",
    ),
    "constant_reward": Sentinel(
        metrics=["rollout/reward_std"],
        judge=_below,
        window=5,
        bound="below {:g} on average of 5 steps",
        means="every response scores alike: the reward stands at a bound",
        look_at="sampled responses and their scores, the reward function",
    ),
}


@dataclass
class Sentinels:
    """All that a configuration has on."""

    config: SentinelsConfig
    _histories: dict[str, History] = field(default_factory=dict)

    def look(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """At a step's metrics, each step once; a value that is not finite is not taken up."""
        alarms = []
        for name, sentinel in SENTINELS.items():
            action: Any = getattr(self.config, name, "off")  # some are of online jobs alone
            if action == "off":
                continue
            bound = getattr(self.config, f"{name}_bound")
            for metric in sentinel.metrics:
                if metric == _ON_ROLLOUTS and AHEAD in metrics:
                    continue
                value = metrics.get(metric, math.nan)
                if not math.isfinite(value) or not self._history(name, metric).add(value):
                    continue
                compared, is_beyond = sentinel.judge(self._history(name, metric), bound)
                if is_beyond:
                    limit = f"{sentinel.bound.format(bound)} (sentinels.{name})"
                    text = f"{sentinel.means}: {metric} {compared:.4g} is {limit}"
                    text += f"; look at {sentinel.look_at}"
                    alarms.append(Alarm(metric=metric, text=text, action=action))
        return alarms

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run judges by, as JSON has it."""
        return {
            key: {"last": list(history.last), "start": history.start}
            for key, history in self._histories.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Judge as the run that said this."""
        for key, history in state.items():
            kept = self._history(*key.split(" "))
            kept.last.extend(history["last"])
            kept.start = history["start"]

    def _history(self, name: str, metric: str) -> History:
        new = History(last=deque(maxlen=SENTINELS[name].window))
        return self._histories.setdefault(f"{name} {metric}", new)


def stop_if_alarmed(step: int, alarms: Sequence[Alarm]) -> None:
    """End the run where a sentinel is to.

    Raises:
        TrainingStopped: Says what each of them said.
    """
    if said := [alarm.text for alarm in alarms if alarm.action == "stop"]:
        raise TrainingStopped(f"step {step}: {'. '.join(said)}")
