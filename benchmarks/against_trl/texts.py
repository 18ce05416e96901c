"""What both sides train on, as JSON lines."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from benchmarks.against_trl.models import SHAPE, SPECIAL
from benchmarks.data_scale import write_rows
from benchmarks.reward_models import hh_rows


def write(path: Path, rows: Iterable[Mapping[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prompts(num_prompts: int, num_tokens: int, *, repeated: int = 1) -> list[dict[str, str]]:
    """Random words, as many as tokens; each prompt `repeated` times."""
    draw = random.Random(0)
    words = range(len(SPECIAL), SHAPE["vocab_size"])
    rows = [
        {"prompt": " ".join(f"w{number}" for number in draw.choices(words, k=num_tokens))}
        for _ in range(num_prompts)
    ]
    return [row for row in rows for _ in range(repeated)]


def dialogues() -> list[dict[str, str]]:
    """HH-RLHF's prompts, each with the preferred and the other answer."""
    return hh_rows()


def fitting(
    rows: Iterable[dict[str, str]], tokenizer: PreTrainedTokenizerFast, max_tokens: int
) -> Iterator[dict[str, str]]:
    """Pairs that neither side has to cut: prompt, answer and end have room."""
    for row in rows:
        sides = [row["prompt"] + row[side] for side in ("chosen", "rejected")]
        if all(len(ids) < max_tokens for ids in tokenizer(sides)["input_ids"]):
            yield row


def instructions(path: Path, num_rows: int) -> list[dict[str, str]]:
    """Prompts and completions of Alpaca's form and lengths; the raw rows go to `path`."""
    write_rows(path, num_rows)
    return [_as_prompt(json.loads(line)) for line in path.read_text().splitlines()]


def _as_prompt(row: Mapping[str, str]) -> dict[str, str]:
    given = f"### Input:\n{row['input']}\n\n" if row["input"] else ""
    return {
        "prompt": f"### Instruction:\n{row['instruction']}\n\n{given}### Response:\n",
        "completion": row["output"],
    }
