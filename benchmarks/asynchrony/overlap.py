"""How long a step takes when the next one is sampled meanwhile, against the longer of the two.

All answers have the same length, at which sampling and learning take about as long. Policy and
engine have a thread each. The synchronous run says what sampling takes alone, and what the
learner's part takes alone: scoring, update and publication. Both take one optimiser step a batch,
whose own pass knows the policy's log-probabilities at the step's start: with more of them a run
ahead has a pass that a synchronous one does not need, as its engine's are those. Runs take turns,
since the machine's speed changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.asynchrony.runs import PLAIN, Metrics, inner, middle, open_runs, stories_config
from rlhf_ray.config.base import laid_over
from rlhf_ray.config.online import GrpoConfig

GOAL = 1.15
SHORTEST_S = 5.0
LEARNER = ("score", "update", "publish")
SETTINGS: dict[str, Any] = laid_over(
    PLAIN,
    {
        "prompts_per_step": 16,
        "samples_per_prompt": 8,
        "algorithm": {"minibatches": 1},
        # By default either has all cores where they do not work at the same time.
        "placement": {"policy": {"cpus_per_rank": 1}, "rollout": {"cpus_per_rank": 1}},
        "rollout": {"max_new_tokens": 256, "max_num_seqs": 128, "ignore_eos": True},
    },
)


def config_of(folder: Path, *, max_staleness: int, steps: int) -> GrpoConfig:
    """The job, so many versions ahead at most."""
    own = {"total_steps": steps, "max_staleness": max_staleness}
    return stories_config(folder / f"overlap-{max_staleness}", SETTINGS, own)


def overlap(folder: Path, *, steps: int, turns: int) -> dict[str, Any]:
    """Both runs, and what they say of each other; all times in seconds, medians of steps."""
    alone: list[Metrics] = []
    ahead: list[Metrics] = []
    synchronous = config_of(folder, max_staleness=0, steps=steps)
    with open_runs(synchronous) as runs:
        for _ in range(turns):
            alone += inner(runs.train(synchronous))
            ahead += inner(runs.train(config_of(folder, max_staleness=1, steps=steps)))
    generation_s = middle(alone, "time/generate")
    learner_s = sum(middle(alone, f"time/{phase}") for phase in LEARNER)
    synchronous_s, ahead_s = middle(alone, "time/step"), middle(ahead, "time/step")
    ratio = ahead_s / max(generation_s, learner_s)
    return {
        "generation alone": generation_s,
        "update alone": learner_s,
        "synchronous step": synchronous_s,
        "step at max_staleness 1": ahead_s,
        "synchronous steps": [round(row["time/step"], 2) for row in alone],
        "steps at max_staleness 1": [round(row["time/step"], 2) for row in ahead],
        "policy without work, share": middle(ahead, "perf/bubble_share"),
        "largest staleness": max(row["async/staleness_max"] for row in ahead),
        "synchronous / asynchronous": synchronous_s / ahead_s,
        "ratio": ratio,
        "goal": GOAL,
        "steps are long enough": min(generation_s, learner_s) >= SHORTEST_S,
        "holds": ratio <= GOAL and min(generation_s, learner_s) >= SHORTEST_S,
    }
