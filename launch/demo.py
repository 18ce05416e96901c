"""`make demo`: a whole RLHF pipeline of a tiny model on one pool, and a table of what it brought.

Model and task are made on the spot, so that the whole system can be shown without a download: a
tokenizer of single characters, a model small enough for a laptop, and numbers whose digits are to
be sorted, `sort 52913 =` is answered by `12359`. The rest is `configs/pipeline/tiny-cpu.yaml`: SFT;
pairs of answers, judged by the task's own check; a reward model of these pairs; PPO against that
model, and DPO on the same pairs. PPO and DPO start from the same weights and are measured by the
same check on the same held-out prompts.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.character_model import write_model
from launch.cli import check_and_run, guarded
from launch.run.messages import libraries_to_file
from rlhf_ray.config.jobs import PIPELINE, PipelineConfig
from rlhf_ray.config.tools.load import find_config, load_config

FOLDER = Path("runs/demo")
NUM_DIGITS = 6
CHARACTERS = "0123456789 =sort"


def main() -> int:
    """Run the demo; returns the exit status."""
    return guarded(_run)


def _run() -> int:
    started_s = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    with libraries_to_file():
        write_task(FOLDER / "data", num_sft=4000, num_train=4000, num_test=256, seed=0)
        write_model(FOLDER / "model", CHARACTERS, seed=0, num_embeddings=32)
    config = load_config(PipelineConfig, find_config(PIPELINE, "tiny-cpu"))
    # Model and data are in its folder already.
    settings = {"run_dir": os.path.abspath(FOLDER), "resume": "auto"}
    check_and_run(config.model_copy(update=settings))
    _print_table(_gold_scores(), time.monotonic() - started_s)
    return 0


def _gold_scores() -> list[tuple[str, float, float]]:
    """Of each job: share of held-out prompts that it answered right, before and after."""
    ppo = _logged("ppo", "eval/reward/correct_answer")
    before, after = (_logged(stage, "eval/reward_mean")[0] for stage in ("pairs", "dpo-judged"))
    return [("PPO against the reward model", ppo[0], ppo[-1]), ("DPO", before, after)]


def _logged(stage: str, name: str) -> list[float]:
    """Every value of a metric in a stage's run."""
    lines = (FOLDER / stage / "metrics.jsonl").read_text().splitlines()
    return [row[name] for row in map(json.loads, lines) if name in row]


def _print_table(golds: Sequence[tuple[str, float, float]], seconds: float) -> None:
    import rich
    from rich.table import Table

    table = Table(title="share of held-out numbers sorted without a mistake")
    for column in ("job", "after SFT", "after training", "points gained"):
        table.add_column(column, justify="left" if column == "job" else "right")
    for job, before, after in golds:
        table.add_row(job, f"{before:.1%}", f"{after:.1%}", f"{100 * (after - before):+.1f}")
    score = _logged("ppo", "eval/reward/model")
    rich.print(
        table,
        f"The reward model's own score of PPO's answers went from {score[0]:+.2f} to "
        f"{score[-1]:+.2f}.",
        f"in {seconds:.0f} s; everything that was written is in {FOLDER}",
        sep="\n",
    )


def make_rows(num_rows: int, *, seed: int) -> list[dict[str, str]]:
    """Distinct prompts with their answers: `prompt`, `completion`, and `answer` for a verifier."""
    generator = random.Random(seed)
    answers: dict[str, str] = {}
    while len(answers) < num_rows:
        digits = "".join(generator.choices("123456789", k=NUM_DIGITS))
        answers[digits] = "".join(sorted(digits))
    return [
        {"prompt": f"sort {digits} =", "completion": answer, "answer": answer}
        for digits, answer in answers.items()
    ]


def write_task(folder: Path, *, num_sft: int, num_train: int, num_test: int, seed: int) -> None:
    """Write `sft.jsonl`, `train.jsonl` and `test.jsonl`; no prompt is in two of them."""
    rows = make_rows(num_sft + num_train + num_test, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "sft": rows[:num_sft],
        "train": rows[num_sft : num_sft + num_train],
        "test": rows[num_sft + num_train :],
    }
    for name, part in parts.items():
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines)


if __name__ == "__main__":
    sys.exit(main())
