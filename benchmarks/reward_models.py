"""Reward models of this project and of TRL on the same base, head, split, batches and steps.

Two data sets, the last third held out:

* `hh`: human preferences between dialogues (HH-RLHF, helpful-base);
* `stories`: the true end of a story against the ends of others.

    python benchmarks/reward_models.py hh
    python benchmarks/reward_models.py stories --steps 240 --lr 1e-3 --seeds 0 1

A seed draws the new head and the order of the pairs, for both alike: a head and an order of each
one's own would differ by more than what is measured. The folder of models and data comes from
`RLHF_RAY_DATA` (default `../shared/data`). TRL is a test dependency. Prints held-out accuracy of
both, each with its standard error.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

DATA = Path(os.environ.get("RLHF_RAY_DATA", "../shared/data"))
BASE = DATA / "models/stories260K"
BATCH_SIZE = 32
Row: TypeAlias = dict[str, str]
MAX_LENGTH = {"hh": 512, "stories": 256}


def main() -> int:
    """Train both and print what each reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=("hh", "stories"))
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/reward-models"))
    arguments = parser.parse_args()
    max_length = MAX_LENGTH[arguments.data]
    train, test = _hh() if arguments.data == "hh" else _story_ends()
    train, test = _fitting(train, max_length), _fitting(test, max_length)
    print(f"{len(train)} pairs to train on, {len(test)} held out, {arguments.steps} steps")
    reached: dict[str, list[float]] = {"rlhf-ray": [], "TRL": []}
    for seed in arguments.seeds:
        folder = arguments.folder / f"{arguments.data}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "train.jsonl", _in_order(train, arguments.steps * BATCH_SIZE, seed))
        _write(folder / "test.jsonl", test)
        _save_start(folder / "start", seed)
        given = (folder, arguments.steps, arguments.lr, max_length)
        for name, accuracy in (("rlhf-ray", _ours(*given)), ("TRL", _trl(*given))):
            reached[name].append(accuracy)
            print(f"seed {seed}  {name:<10} accuracy {accuracy:.4f}", flush=True)
    for name, accuracies in reached.items():
        mean = fmean(accuracies)
        error = math.sqrt(mean * (1 - mean) / len(test))
        print(f"{name:<10} accuracy {mean:.4f} ± {error:.4f}")
    return 0


def _in_order(rows: list[Row], num_rows: int, seed: int) -> list[Row]:
    """Epoch after epoch, each in an order of its own, to the number of rows wanted."""
    draw, ordered = random.Random(seed), list[Row]()
    while len(ordered) < num_rows:
        ordered += draw.sample(rows, len(rows))
    return ordered[:num_rows]


def _write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _save_start(folder: Path, seed: int) -> None:
    """The base with a new scalar head."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForSequenceClassification.from_pretrained(
        BASE, num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def hh_rows() -> list[Row]:
    """HH-RLHF's dialogues; what both have in common up to the last turn is the prompt."""
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


def _hh() -> tuple[list[Row], list[Row]]:
    """Train and test."""
    rows = hh_rows()
    third = len(rows) // 3
    return rows[:-third], rows[-third:]


def _story_ends() -> tuple[list[Row], list[Row]]:
    """A story's last two sentences after the four before, and those of another story.

    In training each true end stands against two others, held out against one; held-out stories
    and their ends are in no pair that is trained on.
    """
    texts = (DATA / "text/tinystories_sample.txt").read_text().split("<|endoftext|>")
    stories = []
    for text in texts:
        sentences = text.strip().replace("\n", " ").split(". ")
        if len(sentences) >= 6:
            begin, end = sentences[-6:-2], sentences[-2:]
            stories.append((". ".join(begin) + ".", " " + ". ".join(end)))
    third = len(stories) // 3
    return _against_others(stories[:-third], 2), _against_others(stories[-third:], 1)


def _against_others(stories: list[tuple[str, str]], num_others: int) -> list[Row]:
    return [
        {"prompt": begin, "chosen": end, "rejected": stories[(n + step) % len(stories)][1]}
        for n, (begin, end) in enumerate(stories)
        for step in range(2, 2 + num_others)
    ]


def _fitting(rows: list[Row], max_length: int) -> list[Row]:
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


def _ours(folder: Path, steps: int, lr: float, max_length: int) -> float:
    config = {
        "total_steps": steps,
        "batch_size": BATCH_SIZE,
        "max_length": max_length,
        "data": {"path": str(folder / "train.jsonl"), "shuffle": False},
        "eval": {"data": {"path": str(folder / "test.jsonl")}},
        "reward": {
            "model": {"path": str(folder / "start"), "dtype": "float32"},
            "optim": {"lr": lr, "schedule": "linear"},
        },
        "placement": {"reward": {"cpus_per_rank": 2}},
        "checkpoint": {"export": "never"},
    }
    path, run = folder / "config.json", folder / "rlhf-ray"
    path.write_text(json.dumps(config))
    shutil.rmtree(run, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "launch.cli", "rm", str(path), "--run-dir", str(run)], check=True
    )
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    accuracy: float = metrics[-1]["eval/accuracy"]
    return accuracy


def _trl(folder: Path, steps: int, lr: float, max_length: int) -> float:
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    parts = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    data: Any = load_dataset("json", data_files=parts)
    trainer = RewardTrainer(
        model=str(folder / "start"),
        args=RewardConfig(
            output_dir=str(folder / "trl"),
            max_steps=steps,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=BATCH_SIZE,
            max_length=max_length,
            learning_rate=lr,
            lr_scheduler_type="linear",
            adam_beta2=0.95,
            weight_decay=0.0,
            max_grad_norm=1.0,
            bf16=False,
            use_cpu=True,
            train_sampling_strategy="sequential",
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
