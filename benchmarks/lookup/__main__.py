"""`python -m benchmarks.lookup`: how much a policy learns of a task that takes a tool.

It looks a digit up and answers it; without the look an answer is right once in ten times. From an
SFT start that looks in four of ten cases, GRPO and PPO are trained in the environment with each
seed. Every run must gain 30 points on held-out prompts; else this ends with status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lookup.task import Algorithm, pipeline, write_task
from launch.cli import check_and_run

GAIN = 0.30


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """Share of held-out prompts that are answered right, before and after."""

    before: float
    after: float
    seconds: float

    @property
    def is_enough(self) -> bool:
        """Whether it gained as much as it must."""
        return self.after - self.before >= GAIN


def main() -> int:
    """Train, and say what was learnt; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithms", nargs="+", default=["grpo", "ppo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    is_enough = True
    for algorithm in given.algorithms:
        for seed in given.seeds:
            learnt = run(algorithm, seed=seed, steps=given.steps)
            is_enough &= learnt.is_enough
            print(
                f"{algorithm}, seed {seed}: {learnt.before:.1%} to {learnt.after:.1%} "
                f"in {learnt.seconds:.0f} s: {'enough' if learnt.is_enough else 'too little'}",
                flush=True,
            )
    return 0 if is_enough else 1


def run(algorithm: Algorithm, *, seed: int, steps: int) -> Learnt:
    """One pipeline, in a folder that is gone afterwards."""
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(os.path.realpath(name))
        write_task(folder, seed=seed)
        check_and_run(pipeline(folder, algorithm, seed=seed, steps=steps))
        lines = (folder / "runs" / algorithm / "metrics.jsonl").read_text().splitlines()
    rewards = [
        row["eval/reward_mean"] for row in map(json.loads, lines) if "eval/reward_mean" in row
    ]
    return Learnt(before=rewards[0], after=rewards[-1], seconds=time.monotonic() - started_s)


if __name__ == "__main__":
    sys.exit(main())
