"""Rows with chats, a tokenizer whose template has tools, and ways to load and to look at them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from loads import load_pairs, load_prompts, load_sft

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.chat.borders import decode
from rlhf_ray.errors import RowError
from rlhf_ray.types import Prompt, Ranking, SftExample

SYSTEM = {"role": "system", "content": "be brief"}
USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
WORSE = {"role": "assistant", "content": "b"}
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}],
}
RESULT = {"role": "tool", "content": "2"}
# ChatML with tools, calls and a variable of its own.
TOOLS = (
    "{% if tools %}T:{{ tools | map(attribute='function') | map(attribute='name') | join(',') }};"
    "{% endif %}{% if short is defined %}short={{ short }};{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} ARGUMENTS</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OBJECT, STRING = "{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}"
OPENED = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
SYSTEM_OPENED = "<|im_start|>system\nbe brief<|im_end|>\n" + OPENED


def config(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> DataConfig:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(path=str(path), **settings)


def examples(tmp_path: Path, tokenizer: Any, *rows: dict[str, Any]) -> Sequence[SftExample]:
    return load_sft(config(tmp_path, *rows), tokenizer, max_length=999).rows


def prompt_of(tmp_path: Path, tokenizer: Any, row: dict[str, Any]) -> Prompt:
    [prompt] = load_prompts(config(tmp_path, row), tokenizer, context_tokens=999).rows
    return prompt


def pair_of(tmp_path: Path, tokenizer: Any, row: dict[str, Any]) -> Ranking:
    [pair] = load_pairs(config(tmp_path, row), tokenizer, max_length=999).rows
    return pair


def parts(tokenizer: Any, example: SftExample) -> list[str]:
    """An example's text, parted where tokens begin or cease to be trained; untrained first."""
    runs: list[list[int]] = [[]]
    for token_id, mark in zip(example.token_ids_T.tolist(), example.trained_T, strict=True):
        if bool(mark) == len(runs) % 2:
            runs.append([])
        runs[-1].append(token_id)
    return [decode(tokenizer, ids) for ids in runs]


def refusal(tmp_path: Path, tokenizer: Any, row: dict[str, Any], load: Any = load_sft) -> str:
    settings = {"context_tokens": 999} if load is load_prompts else {"max_length": 999}
    with pytest.raises(RowError) as caught:
        load(config(tmp_path, row), tokenizer, **settings)
    words = str(caught.value)
    assert words.startswith(f"{tmp_path}/train.jsonl:1: ")
    assert words.count("\n") < 10 and len(words) < 900
    return words.removeprefix(f"{tmp_path}/train.jsonl:1: ")
