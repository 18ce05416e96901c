"""Reward models of this project and of TRL on the same base, split, batches and number of steps.

Two data sets, the last third held out:

* `hh`: human preferences between dialogues (HH-RLHF, helpful-base);
* `stories`: the true end of a story against the end of another one.

    python benchmarks/reward_models.py hh
    python benchmarks/reward_models.py stories --steps 120 --lr 1e-3

The folder of models and data comes from `RLHF_RAY_DATA` (default `../shared/data`). TRL is a test
dependency. Prints held-out accuracy of both, each with its standard error.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("RLHF_RAY_DATA", "../shared/data"))
BASE = DATA / "models/stories260K"
BATCH_SIZE, WARMUP = 32, 10
MAX_LENGTH = {"hh": 512, "stories": 256}


def main() -> int:
    """Train both and print what each reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=("hh", "stories"))
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/reward-models"))
    arguments = parser.parse_args()
    folder = arguments.folder / arguments.data
    folder.mkdir(parents=True, exist_ok=True)
    max_length = MAX_LENGTH[arguments.data]
    rows = _fitting(_hh() if arguments.data == "hh" else _story_ends(), max_length)
    third = len(rows) // 3
    parts = {"train": rows[:-third], "test": rows[-third:]}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    print(f"{len(parts['train'])} pairs to train on, {third} held out, {arguments.steps} steps")
    given = (folder, arguments.steps, arguments.lr, arguments.seed, max_length)
    ours, trl = _ours(*given), _trl(*given)
    for name, accuracy in (("rlhf-ray", ours), ("TRL", trl)):
        error = math.sqrt(accuracy * (1 - accuracy) / third)
        print(f"{name:<10} accuracy {accuracy:.4f} ± {error:.4f}")
    return 0


def _hh() -> list[dict[str, str]]:
    """Whole dialogues; what they have in common up to the last turn is the prompt."""
    with gzip.open(DATA / "hh-rlhf/helpful-base/test.jsonl.gz", "rt") as file:
        pairs = [json.loads(line) for line in file]
    rows = []
    for pair in pairs:
        turns = [pair[side].rpartition("\n\nAssistant:") for side in ("chosen", "rejected")]
        if turns[0][0] == turns[1][0] and turns[0][2].strip() != turns[1][2].strip():
            rows.append(
                {
                    "prompt": turns[0][0] + turns[0][1],
                    "chosen": turns[0][2],
                    "rejected": turns[1][2],
                }
            )
    return rows


def _story_ends() -> list[dict[str, str]]:
    """A story's last two sentences after the four before, and those of the story after the next."""
    texts = (DATA / "text/tinystories_sample.txt").read_text().split("<|endoftext|>")
    stories = []
    for text in texts:
        sentences = text.strip().replace("\n", " ").split(". ")
        if len(sentences) >= 6:
            begin, end = sentences[-6:-2], sentences[-2:]
            stories.append((". ".join(begin) + ".", " " + ". ".join(end)))
    return [
        {"prompt": begin, "chosen": end, "rejected": stories[(n + 2) % len(stories)][1]}
        for n, (begin, end) in enumerate(stories)
    ]


def _fitting(rows: list[dict[str, str]], max_length: int) -> list[dict[str, str]]:
    """Those that both trainers can hold whole, so that neither cuts or drops."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    return [
        row
        for row in rows
        if all(
            len(tokenizer(row["prompt"] + row[side])["input_ids"]) < max_length - 8
            for side in ("chosen", "rejected")
        )
    ]


def _ours(folder: Path, steps: int, lr: float, seed: int, max_length: int) -> float:
    config = {
        "total_steps": steps,
        "batch_size": BATCH_SIZE,
        "max_length": max_length,
        "seed": seed,
        "data": {"path": str(folder / "train.jsonl")},
        "eval": {"data": {"path": str(folder / "test.jsonl")}},
        "reward": {
            "model": {"path": str(BASE), "dtype": "float32"},
            "optim": {"lr": lr, "warmup_steps": WARMUP, "schedule": "linear"},
        },
        "placement": {"reward": {"cpus_per_rank": 2}},
        "checkpoint": {"export": False},
    }
    path, run = folder / "config.json", folder / f"rlhf-ray-{seed}-{steps}"
    path.write_text(json.dumps(config))
    shutil.rmtree(run, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "launch.rm", str(path), "--run-dir", str(run)], check=True
    )
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    accuracy: float = metrics[-1]["eval/accuracy"]
    return accuracy


def _trl(folder: Path, steps: int, lr: float, seed: int, max_length: int) -> float:
    import torch
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(seed)
    parts = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    data: Any = load_dataset("json", data_files=parts)
    trainer = RewardTrainer(
        model=str(BASE),
        args=RewardConfig(
            output_dir=str(folder / "trl"),
            max_steps=steps,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=BATCH_SIZE,
            max_length=max_length,
            learning_rate=lr,
            lr_scheduler_type="linear",
            warmup_steps=WARMUP,
            adam_beta2=0.95,
            weight_decay=0.0,
            max_grad_norm=1.0,
            bf16=False,
            use_cpu=True,
            seed=seed,
            report_to="none",
            save_strategy="no",
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=AutoTokenizer.from_pretrained(BASE),
    )
    trainer.train()
    accuracy: float = trainer.evaluate()["eval_accuracy"]
    return accuracy


if __name__ == "__main__":
    sys.exit(main())
