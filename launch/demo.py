"""`make demo`: a whole RLHF pipeline of a tiny model on one pool, and a table of what it brought.

Model and task are made on the spot (`rlhf_ray.data.sorting`), the rest is
`configs/pipeline/tiny-cpu.yaml`: SFT; pairs of answers, judged by the task's own check; a reward
model of these pairs; PPO against that model, and DPO on the same pairs. PPO and DPO start from the
same weights and are measured by the same check on the same held-out prompts.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.config.load import load_config
from rlhf_ray.config.pipeline import PipelineConfig
from rlhf_ray.data.sorting import write_model, write_task
from rlhf_ray.errors import RlhfRayError

FOLDER = Path("runs/demo")


@dataclass(frozen=True, kw_only=True)
class Gold:
    """Share of held-out prompts that a job answered right, before and after."""

    job: str
    before: float
    after: float


def main() -> int:
    """Run the demo; returns the exit status."""
    from launch import pipeline

    started_s = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    write_task(FOLDER / "data", num_sft=4000, num_train=4000, num_test=256, seed=0)
    write_model(FOLDER / "model", seed=0)
    config = load_config(PipelineConfig, "configs/pipeline/tiny-cpu.yaml")
    try:
        pipeline.run(config.model_copy(update={"run_dir": os.path.abspath(FOLDER)}))
    except RlhfRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _print_table(_golds(), time.monotonic() - started_s)
    return 0


def _golds() -> list[Gold]:
    start = _told("pairs", "eval/reward_mean")[0]
    ppo = _told("ppo", "eval/reward/correct_answer")
    return [
        Gold(job="PPO against the reward model", before=ppo[0], after=ppo[-1]),
        Gold(job="DPO", before=start, after=_told("dpo-judged", "eval/reward_mean")[0]),
    ]


def _told(stage: str, name: str) -> list[float]:
    """Every value of a metric in a stage's run."""
    lines = (FOLDER / stage / "metrics.jsonl").read_text().splitlines()
    return [row[name] for row in map(json.loads, lines) if name in row]


def _print_table(golds: Sequence[Gold], seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="share of held-out numbers sorted without a mistake")
    for column in ("job", "after SFT", "after training", "points gained"):
        table.add_column(column, justify="left" if column == "job" else "right")
    for gold in golds:
        gain = 100 * (gold.after - gold.before)
        table.add_row(gold.job, f"{gold.before:.1%}", f"{gold.after:.1%}", f"{gain:+.1f}")
    score = _told("ppo", "eval/reward/model")
    Console().print(
        table,
        f"The reward model's own score of PPO's answers went from {score[0]:+.2f} to "
        f"{score[-1]:+.2f}.",
        f"in {seconds:.0f} s; everything that was written is in {FOLDER}",
        sep="\n",
    )


if __name__ == "__main__":
    sys.exit(main())
