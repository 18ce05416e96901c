"""What journal and checkpoints cost: the same steps with and without them, in turns.

Synchronous steps from the same seed are equal bit for bit, so that step by step the same is done.
With them, every group is recorded and a checkpoint follows every step. How long the driver was at
both is measured, most of it in threads beside the run: if nothing of it were hidden, that would be
the overhead. That bound is what is judged. The ratio of two equal steps scatters by a tenth on a
machine that is shared, many times what is looked for: it must not say that there is more.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from benchmarks.asynchrony.runs import PLAIN, Metrics, open_runs, stories_config
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.jobs.online import OnlineData
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.metrics.usage import Usage
from rlhf_ray.roles.protocols import Roles
from rlhf_ray.rollouts.feed import Feed

GOAL = 0.02


class Timed(OnlineLoop):
    """Its journal and its checkpoints are timed; `spent_s` is by operation."""

    spent_s: ClassVar[dict[str, float]] = defaultdict(float)

    async def begin(self, step: int) -> None:
        """As any loop, with what it spends noted."""
        for owner, operation in (
            (self.journal, "append"),
            (self.journal, "sync"),
            (self.keeper.store, "commit"),
        ):
            setattr(owner, operation, self._timed(getattr(owner, operation), operation))
        await super().begin(step)

    def _timed(self, call: Callable[..., Any], operation: str) -> Callable[..., Any]:
        @wraps(call)
        def timed(*arguments: Any, **options: Any) -> Any:
            began_s = time.monotonic()
            try:
                return call(*arguments, **options)
            finally:
                self.spent_s[operation] += time.monotonic() - began_s

        return timed


class Unrecorded(OnlineLoop):
    """What is decided about groups is written nowhere."""

    def _feed_behind(self, steps: int) -> Feed:
        feed = super()._feed_behind(steps)
        feed.recorder = None
        return feed


def in_loop(kind: type[OnlineLoop]) -> Callable[..., OnlineLoop]:
    """What a job puts its loop together with."""

    def made(
        config: GrpoConfig, data: OnlineData, roles: Roles, log: MetricsLog, usage: Usage
    ) -> OnlineLoop:
        evaluation = Evaluation(config, data.eval_prompts)
        return kind(config, roles, data.prompts, evaluation, log, usage=usage)

    return made


def config_of(folder: Path, *, every: int, steps: int) -> GrpoConfig:
    """Stories with a checkpoint after every so many steps, and after the last."""
    own = {"total_steps": steps, "checkpoint": {"every": every}}
    return stories_config(folder / f"overhead-{every}", PLAIN, own)


def overhead(folder: Path, *, steps: int, turns: int) -> dict[str, Any]:
    """Runs with and without in turns; seconds are medians of steps."""
    bare, whole = (config_of(folder, every=every, steps=steps) for every in (0, 1))
    without, with_both = list[Sequence[Metrics]](), list[Sequence[Metrics]]()
    with open_runs(whole) as runs:
        for turn in range(turns):
            # Whatever drifts is on either side alike.
            order = [(bare, without), (whole, with_both)]
            for config, kept in order if turn % 2 == 0 else order[::-1]:
                loop = in_loop(Unrecorded if config is bare else Timed)
                kept.append(runs.train(config, loop=loop)[2:])  # step 1 warms up
    ratios = ratios_of(without, with_both)
    low, middle, high = (ratio - 1 for ratio in median_within(flat(ratios)))
    spent_s = {name: s / (turns * steps) for name, s in Timed.spent_s.items()}
    spent_s["checkpoint"] = median(row["time/checkpoint"] for turn in with_both for row in turn)
    step_s = median(row["time/step"] for turn in without for row in turn)
    share = sum(spent_s.values()) / step_s
    return {
        "step without": step_s,
        "spent on them in a step, seconds": spent_s,
        "with / without, step by step": [[round(ratio, 4) for ratio in turn] for turn in ratios],
        "their median less 1, and its interval of 95 %": [middle, low, high],
        "overhead at most": share,
        "goal": GOAL,
        "holds": share <= GOAL and low <= GOAL,
    }


def flat(turns: Sequence[Sequence[float]]) -> list[float]:
    """The values of all turns."""
    return [value for turn in turns for value in turn]


def median_within(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, between the ends of its interval of 95 %.

    The ends are order statistics (David and Nagaraja, "Order Statistics", 7.1, by the normal
    approximation of how many values lie below the median).
    """
    ranked = sorted(values)
    within = 1.96 * math.sqrt(len(ranked)) / 2
    first = max(math.floor(len(ranked) / 2 - within), 0)
    return ranked[first], median(ranked), ranked[len(ranked) - 1 - first]


def ratios_of(
    without: Sequence[Sequence[Metrics]], with_both: Sequence[Sequence[Metrics]]
) -> list[list[float]]:
    """Of each turn, how much longer each step was.

    Raises:
        ValueError: The runs did not do the same.
    """
    for bare, whole in zip(without, with_both, strict=True):
        for one, other in zip(bare, whole, strict=True):
            if one["rollout/reward_mean"] != other["rollout/reward_mean"]:
                raise ValueError(f"step {one['step']:.0f} was not the same with and without")
    return [
        [other["time/step"] / one["time/step"] for one, other in zip(bare, whole, strict=True)]
        for bare, whole in zip(without, with_both, strict=True)
    ]
