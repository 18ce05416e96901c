"""What is compared: for each case this project's configuration, and TRL's settings beside it.

Both get what a user might set on the machine: TRL all threads and the batch per pass
of 64 rows, which is not tuned; this project its defaults and room for all sequences of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.against_trl import texts
from benchmarks.against_trl.models import (
    TOKENIZER,
    save_classifier,
    save_model,
    text_tokenizer,
    word_tokenizer,
)
from benchmarks.against_trl.turns import TURN_S
from rlhf_ray.config.base import laid_over

REWARD = f"{Path(__file__).with_name('rewards.py')}:share_of_even_words"
LR = 1e-6
MAX_TOKENS = 1024
# Dialogues whose words the tokenizer knows: the others are no different.
TOKENIZED = 300
# What every trainer of TRL is given here. Its gradient checkpointing and bfloat16, which are on by
# default, would make it slower on a CPU.
THEIRS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "learning_rate": LR,
    "lr_scheduler_type": "constant",
    "adam_beta2": 0.95,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


@dataclass(frozen=True, kw_only=True)
class Sides:
    """The two sides of a case.

    Attributes:
        config: Of this project's job.
        theirs: What TRL's process is given: model, rows and settings.
    """

    config: dict[str, Any]
    theirs: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison.

    Attributes:
        job: Of this project; TRL's trainer has the same name.
        goal: How often TRL's time this project's shall fit into.
        steps_a_turn: Optimiser or rollout steps between which nobody waits.
        make: Writes models and rows into a folder, for so many steps, `quick` for a rehearsal.
        by_tokens: Whether steps have other tokens on both sides, so that seconds a token count.
        packages: Folder of packages in front of this environment's own, on TRL's side.
    """

    job: str
    goal: float
    steps_a_turn: int
    make: Callable[[Path, int, bool], Sides]
    by_tokens: bool = False
    packages: str = ""


def _grpo(
    folder: Path, steps: int, quick: bool, *, prompt_tokens: int, mean: float, longest: int
) -> Sides:
    """Answers of `longest` tokens, or with a tail of lengths around `mean`."""
    num_prompts, num_samples = (4, 4) if quick else (64, 8)
    longest = longest // 4 if quick else longest
    end = 1.0 / mean if mean else 0.0
    model = save_model(folder / "model", word_tokenizer(), end_probability=end)
    made = texts.prompts(num_prompts * steps, prompt_tokens)
    rows = texts.write(folder / "rows.jsonl", made)
    config = {
        "prompts_per_step": num_prompts,
        "samples_per_prompt": num_samples,
        "data": {"path": str(rows)},
        "policy": {"model": model_at(model)},
        "rollout": {"max_new_tokens": longest, "max_num_seqs": 512, "kv_cache_gb": 2.0},
        "reward": {"functions": [{"path": REWARD}]},
    }
    per_pass = min(64, num_prompts * num_samples)
    theirs = {
        "num_generations": num_samples,
        "max_completion_length": longest,
        "temperature": 1.0,
        "per_device_train_batch_size": per_pass,
        "gradient_accumulation_steps": num_prompts * num_samples // per_pass,
        "beta": 0.0,
    }
    return _sides(folder, "policy", config, theirs, steps, model=model, rows=rows)


def _ppo(
    folder: Path, steps: int, quick: bool, *, prompt_tokens: int, samples_per_prompt: int
) -> Sides:
    """64 episodes a step, in four epochs of one optimiser step each; KL in the reward."""
    num_episodes, num_tokens = (8, 16) if quick else (64, 64)
    num_prompts = num_episodes // samples_per_prompt
    model = save_model(folder / "model", word_tokenizer())
    classifier = save_classifier(folder / "classifier", model)
    made = texts.prompts(num_prompts, prompt_tokens)
    rows = texts.write(folder / "rows.jsonl", made)
    # TRL's trainer knows no samples of a prompt: prompts are there as often.
    repeated = texts.prompts(num_prompts, prompt_tokens, repeated=samples_per_prompt)
    config = {
        "prompts_per_step": num_prompts,
        "samples_per_prompt": samples_per_prompt,
        "data": {"path": str(rows)},
        "policy": {"model": model_at(model)},
        "value": {"model": model_at(classifier), "optim": {"lr": LR}},
        "rollout": {"max_new_tokens": num_tokens},
        "reward": {"model": model_at(classifier)},
        "algorithm": {"epochs": 4, "minibatches": 1},
    }
    theirs = {
        "num_ppo_epochs": 4,
        "num_mini_batches": 1,
        "per_device_train_batch_size": num_episodes,
        "gradient_accumulation_steps": 1,
        "response_length": num_tokens,
        "temperature": 1.0,
        "total_episodes": num_episodes * steps,
        "num_sample_generations": 0,
        "kl_coef": 0.05,
    }
    sides = _sides(
        folder,
        "policy",
        config,
        theirs,
        steps,
        model=model,
        rows=texts.write(folder / "repeated.jsonl", repeated),
    )
    sides.theirs["classifier"] = str(classifier)
    return sides


def _pairs(folder: Path, steps: int, quick: bool, *, role: str) -> Sides:
    """HH-RLHF's dialogues, 16 a step, in the same order on both sides."""
    batch = 4 if quick else 16
    pairs = texts.dialogues()
    read = [row[part] for row in pairs[:TOKENIZED] for part in ("prompt", "chosen")]
    tokenizer = text_tokenizer(read)
    rows = list(islice(texts.fitting(pairs, tokenizer, MAX_TOKENS), batch * steps))
    model = save_model(folder / "model", tokenizer)
    if role == "reward":
        model = save_classifier(folder / "classifier", model)
    path = texts.write(folder / "rows.jsonl", rows)
    config = {
        "batch_size": batch,
        "max_length": MAX_TOKENS,
        "data": {"path": str(path), "shuffle": False},
        role: {"model": model_at(model)},
    }
    theirs = {
        "per_device_train_batch_size": batch,
        "max_length": MAX_TOKENS,
        "train_sampling_strategy": "sequential",
    }
    return _sides(folder, role, config, theirs, steps, model=model, rows=path)


def _sft(folder: Path, steps: int, quick: bool) -> Sides:
    """Rows of Alpaca's form and lengths: ours 16 a step; TRL's packed to two rows of 1,024 tokens.

    These are about as many tokens.
    """
    batch, packed = (4, 512) if quick else (16, MAX_TOKENS)
    made = texts.instructions(folder / "alpaca.jsonl", 2 * batch * steps)
    tokenizer = text_tokenizer(text for row in made for text in row.values())
    model = save_model(folder / "model", tokenizer)
    path = texts.write(folder / "rows.jsonl", made)
    config = {
        "batch_size": batch,
        "max_length": MAX_TOKENS,
        "data": {"path": str(path), "shuffle": False, "over_length": "truncate"},
        "policy": {"model": model_at(model)},
    }
    theirs = {
        "per_device_train_batch_size": 1 if quick else 2,
        "max_length": packed,
        "packing": True,
        "include_num_input_tokens_seen": "all",
    }
    return _sides(folder, "policy", config, theirs, steps, model=model, rows=path)


def _sides(
    folder: Path,
    role: str,
    config: Mapping[str, Any],
    theirs: Mapping[str, Any],
    steps: int,
    *,
    model: Path,
    rows: Path,
) -> Sides:
    """With what all cases have in common."""
    common = {
        "run_dir": str(folder / "run"),
        "total_steps": steps,
        "checkpoint": {"export": "never"},
        # Its processes stand still in turns of the other side, which is no fault of theirs.
        "timeouts": {"hang_s": 2 * TURN_S},
        role: {"optim": {"lr": LR}},
    }
    settings = {**THEIRS, "output_dir": str(folder / "trl"), "max_steps": steps, **theirs}
    return Sides(
        config=laid_over(common, config),
        theirs={"model": str(model), "rows": str(rows), "settings": settings},
    )


def model_at(folder: Path) -> dict[str, str]:
    """As a configuration names it."""
    return {"path": str(folder), "tokenizer": str(folder / TOKENIZER), "dtype": "float32"}


def _grpo_case(goal: float, *, prompt_tokens: int, mean: float = 0.0, longest: int = 64) -> Case:
    def make(folder: Path, steps: int, quick: bool) -> Sides:
        return _grpo(folder, steps, quick, prompt_tokens=prompt_tokens, mean=mean, longest=longest)

    return Case(job="grpo", goal=goal, steps_a_turn=1, make=make)


def _ppo_case(goal: float, *, prompt_tokens: int, samples_per_prompt: int) -> Case:
    def make(folder: Path, steps: int, quick: bool) -> Sides:
        return _ppo(
            folder,
            steps,
            quick,
            prompt_tokens=prompt_tokens,
            samples_per_prompt=samples_per_prompt,
        )

    return Case(job="ppo", goal=goal, steps_a_turn=1, make=make, packages=".venv-trl")


def _pairs_case(job: str, role: str) -> Case:
    def make(folder: Path, steps: int, quick: bool) -> Sides:
        return _pairs(folder, steps, quick, role=role)

    return Case(job=job, goal=2.0, steps_a_turn=1, make=make)


CASES: Mapping[str, Case] = {
    "grpo": _grpo_case(1.2, prompt_tokens=37),
    "grpo-long-prompts": _grpo_case(2.2, prompt_tokens=256),
    "grpo-long-tail": _grpo_case(2.5, prompt_tokens=37, mean=64.0, longest=512),
    "ppo": _ppo_case(1.3, prompt_tokens=37, samples_per_prompt=1),
    "ppo-long-prompts": _ppo_case(2.0, prompt_tokens=256, samples_per_prompt=4),
    "dpo": _pairs_case("dpo", "policy"),
    "rm": _pairs_case("rm", "reward"),
    "sft": Case(job="sft", goal=1.1, steps_a_turn=3, make=_sft, by_tokens=True),
}
