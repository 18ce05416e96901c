"""How long rewards that wait take beside sampling, against the longer of the two alone.

    python -m benchmarks.reward_workers --answers 2000 --answer-s 0.05 --workers 8

A small model answers, and a function sleeps so long for each answer. The ideal is the longer of
sampling alone (the same with a function that does not sleep) and of the sleep of all answers on so
many workers. A step's time is that from its first request to its last score; the first step warms
up. Prints the ratio, and ends with 1 where it is above the goal.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.asynchrony.runs import DATA, open_runs
from rlhf_ray.config.sample import SampleConfig

GOAL = 1.15
SAMPLES_PER_PROMPT = 8
PHASES = ("time/generate", "time/score")


def sleeps(completions: Sequence[str], *, answer_s: float, **_: Any) -> list[float]:
    """A verifier that waits for something, answer by answer."""
    for _answer in completions:
        time.sleep(answer_s)
    return [float(len(text)) for text in completions]


def config_of(
    run_dir: Path, *, num_answers: int, answer_s: float, workers: int, steps: int
) -> SampleConfig:
    """The job: it samples and scores, and trains nothing."""
    return SampleConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "total_steps": steps,
            "prompts_per_step": num_answers // SAMPLES_PER_PROMPT,
            "samples_per_prompt": SAMPLES_PER_PROMPT,
            "data": {"path": str(DATA / "text/tinystories_sample.txt"), "prompt_tokens": 24},
            "policy": {"model": {"path": str(DATA / "models/stories260K"), "dtype": "float32"}},
            # Short, so that rewards take the longer.
            "rollout": {"max_new_tokens": 8, "max_num_seqs": 256, "kv_cache_gb": 0.5},
            "reward": {
                "functions": [{"path": f"{__file__}:sleeps", "arguments": {"answer_s": answer_s}}]
            },
            "placement": {"reward_worker": {"ranks": workers}},
            "timeouts": {"start_s": 300, "call_s": 600},
            "ray": {"num_cpus": workers + 8},
        }
    )


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Steps with and without the sleep, on the same actors."""

    def config(name: str, answer_s: float) -> Any:
        return config_of(
            folder / name,
            num_answers=options.answers,
            answer_s=answer_s,
            workers=options.workers,
            steps=options.steps,
        )

    asleep = config("sleeps", options.answer_s)
    with open_runs(asleep) as runs:
        alone = runs.train(config("alone", 0.0))
        beside = runs.train(asleep)
    sampling_s = median(row["time/generate"] for row in alone[2:])
    rewards_s = options.answers * options.answer_s / options.workers
    steps_s = [sum(row[phase] for phase in PHASES) for row in beside[2:]]
    ratio = median(steps_s) / max(sampling_s, rewards_s)
    return {
        "sampling alone": sampling_s,
        "rewards alone, on all workers": rewards_s,
        "rewards one after the other": options.answers * options.answer_s,
        "steps": [round(step_s, 2) for step_s in steps_s],
        "ratio": ratio,
        "goal": GOAL,
        "holds": ratio <= GOAL,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--answer-s", type=float, default=0.05)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), parser.parse_args())
    print(json.dumps(found, indent=1))
    return 0 if found["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
