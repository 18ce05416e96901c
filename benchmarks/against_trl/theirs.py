"""A trainer of TRL, whose steps wait for their turns: `python -m ... theirs FILE DESCRIPTOR`.

It is set up as its users would on a machine without a GPU: float32, all cores, no gradient
checkpointing, no saving.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from benchmarks.against_trl.gate import Enough, Gate
from benchmarks.against_trl.models import TOKENIZER
from benchmarks.against_trl.rewards import share_of_even_words

FLOAT32 = torch.float32


class AtGate(TrainerCallback):
    """Steps end at the gate, each `every` of them."""

    def __init__(self, gate: Gate, every: int) -> None:
        """Begin before the first step."""
        self.gate, self.every, self.num_seen = gate, every, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait where a turn is over."""
        if state.global_step % self.every == 0:
            num_seen = state.num_input_tokens_seen
            self.gate.pass_turn(num_tokens=int(num_seen - self.num_seen))
            self.num_seen = num_seen


def main(file: Path, descriptor: int) -> None:
    """Train what a file describes until no turn is left."""
    given = json.loads(file.read_text())
    callback = AtGate(Gate(descriptor), given["steps_a_turn"])
    trainer = TRAINERS[given["job"]](given, [callback])
    with suppress(Enough):
        trainer.train()


def _grpo(given: Mapping[str, Any], callbacks: list[Any]) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    return GRPOTrainer(
        model=_causal(given["model"]),
        reward_funcs=share_of_even_words,
        args=GRPOConfig(**given["settings"]),
        train_dataset=_rows(given),
        processing_class=_tokenizer(given),
        callbacks=callbacks,
    )


def _ppo(given: Mapping[str, Any], callbacks: list[Any]) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = _tokenizer(given)
    ids = [{"input_ids": tokenizer(row["prompt"])["input_ids"]} for row in _rows(given)]
    policy, reference = _causal(given["model"]), _causal(given["model"])
    return PPOTrainer(
        args=PPOConfig(**given["settings"]),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=_classifier(given["classifier"]),
        value_model=_classifier(given["classifier"]),
        train_dataset=Dataset.from_list(ids),
        eval_dataset=Dataset.from_list(ids),
        callbacks=callbacks,
    )


def _dpo(given: Mapping[str, Any], callbacks: list[Any]) -> Any:
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model=_causal(given["model"]),
        args=DPOConfig(**given["settings"]),
        train_dataset=_rows(given),
        processing_class=_tokenizer(given),
        callbacks=callbacks,
    )


def _rm(given: Mapping[str, Any], callbacks: list[Any]) -> Any:
    from trl import RewardConfig, RewardTrainer

    return RewardTrainer(
        model=_classifier(given["model"]),
        args=RewardConfig(**given["settings"]),
        train_dataset=_rows(given),
        processing_class=_tokenizer(given),
        callbacks=callbacks,
    )


def _sft(given: Mapping[str, Any], callbacks: list[Any]) -> Any:
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=_causal(given["model"]),
        args=SFTConfig(**given["settings"]),
        train_dataset=_rows(given),
        processing_class=_tokenizer(given),
        callbacks=callbacks,
    )


TRAINERS: Mapping[str, Callable[[Mapping[str, Any], list[Any]], Any]] = {
    "grpo": _grpo,
    "ppo": _ppo,
    "dpo": _dpo,
    "rm": _rm,
    "sft": _sft,
}


def _causal(path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=FLOAT32)


def _classifier(path: str) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(path, dtype=FLOAT32, num_labels=1)


def _tokenizer(given: Mapping[str, Any]) -> Any:
    return AutoTokenizer.from_pretrained(Path(given["model"]) / TOKENIZER, padding_side="left")


def _rows(given: Mapping[str, Any]) -> Any:
    lines = Path(given["rows"]).read_text().splitlines()
    return Dataset.from_list([json.loads(line) for line in lines])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
