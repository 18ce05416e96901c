"""Model, tokenizer and data of the task, made on the spot; and its jobs on one pool."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any, Literal, TypeAlias

from launch.character_model import write_model
from rlhf_ray.config.jobs import PipelineConfig

Algorithm: TypeAlias = Literal["grpo", "ppo"]

CHARACTERS = f"{string.digits}{string.ascii_lowercase} =>?"
# Of whole chats: every mark is a character, and what ends a turn a token of its own.
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% elif m.role == 'tool' %}{{ '=' + m.content + '>' }}"
    "{% else %}{{ m.content + '>' }}{% endif %}"
    "{% endfor %}"
)
WORLD = f"{Path(__file__).with_name('world.py')}:Lookup"
NUM_SFT, NUM_TRAIN, NUM_TEST = 20_000, 4000, 256
# Of demonstrations: how many look, and how many of these answer what they saw.
LOOKS, READS = 0.4, 0.9


def write_task(folder: Path, *, seed: int) -> None:
    """Write `model`, `sft.jsonl`, `train.jsonl` and `test.jsonl` into a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made, wanted = random.Random(seed), {"train": NUM_TRAIN, "test": NUM_TEST}
    _write(folder / "sft.jsonl", [{"messages": _demonstration(made)} for _ in range(NUM_SFT)])
    for name, number in wanted.items():
        _write(folder / f"{name}.jsonl", [_row(made) for _ in range(number)])
    write_model(folder / "model", CHARACTERS, seed=seed, chat_template=CHAT_TEMPLATE)


def _row(made: random.Random) -> dict[str, Any]:
    key, digit = made.choice(string.ascii_lowercase), made.choice(string.digits)
    return {"prompt": [{"role": "user", "content": f"key {key}"}], "key": key, "digit": digit}


def _demonstration(made: random.Random) -> list[dict[str, str]]:
    """What knows the form and how to look, and seldom does."""
    row = _row(made)
    chat = list(row["prompt"])
    answer = made.choice(string.digits)
    if made.random() < LOOKS:
        chat += [
            {"role": "assistant", "content": f"get {row['key']}"},
            {"role": "tool", "name": "get", "content": row["digit"]},
        ]
        answer = row["digit"] if made.random() < READS else answer
    return [*chat, {"role": "assistant", "content": answer}]


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pipeline(folder: Path, algorithm: Algorithm, *, seed: int, steps: int) -> PipelineConfig:
    """SFT, and from there the algorithm in the environment."""
    evaluation = {
        "data": {"path": str(folder / "test.jsonl")},
        "every": steps,
        "num_prompts": NUM_TEST,
        "temperature": 1.0,
    }
    sft = {
        "total_steps": 320,
        "batch_size": 64,
        "data": {"path": str(folder / "sft.jsonl")},
        "policy": {
            "model": {"path": str(folder / "model"), "dtype": "float32"},
            "optim": {"lr": 3e-3, "warmup_steps": 10},
        },
    }
    learnt = {
        "total_steps": steps,
        "prompts_per_step": 32,
        "samples_per_prompt": 8,
        "data": {"path": str(folder / "train.jsonl")},
        "policy": {
            "model": {"path": "stage:sft", "dtype": "float32"},
            "optim": {"lr": 4e-4, "schedule": "linear", "min_lr_share": 0.2},
        },
        "rollout": {"max_new_tokens": 16, "max_num_seqs": 256, "kv_cache_gb": 0.25},
        "environment": {"path": WORLD, "max_turns": 3, "max_observation_tokens": 4},
        "algorithm": {"minibatches": 2, "kl": {"coefficient": 0.002}},
        "eval": evaluation,
    }
    if algorithm == "ppo":
        learnt["value"] = {"model": {"dtype": "float32"}, "optim": {"lr": 1e-3}}
    return PipelineConfig.model_validate(
        {
            "run_dir": str(folder / "runs"),
            "resume": "auto",
            "seed": seed,
            "stages": [
                {"name": "sft", "job": "sft", "set": sft},
                {"name": algorithm, "job": algorithm, "set": learnt},
            ],
        }
    )
