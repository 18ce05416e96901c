"""Tokenizers with the templates of well-known families, and an engine that says what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf_ray.data.chat.borders import written_tokens
from rlhf_ray.environments.play import SampledTurn
from rlhf_ray.environments.turns import TurnTemplate
from rlhf_ray.types import Prompt

MARKS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>",
    "</tool_call>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|eom_id|>", "<|python_tag|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>",
    "<|constrain|>", "<|call|>", "<|return|>",
)  # fmt: skip
# The template's file among those that TRL knows models by, and the tokens that end a response.
FAMILIES = {
    "qwen2.5": ("qwen2_5", ("<|im_end|>", "<|endoftext|>")),
    "qwen3": ("qwen3", ("<|im_end|>", "<|endoftext|>")),
    "llama3": ("llama3", ("<|eot_id|>", "<|endoftext|>")),
    "llama3.1": ("llama3_1", ("<|eot_id|>", "<|eom_id|>", "<|endoftext|>")),
    "gpt-oss": ("gptoss", ("<|return|>", "<|call|>", "<|endoftext|>")),
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str) -> Any:
    """One token a byte, but for marks, and two merges: text has several tokenizations."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*MARKS, *symbols])}
    merges = [("a", "b"), ("ab", "a")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|endoftext|>",
        additional_special_tokens=list(MARKS[1:]),
    )
    made.chat_template = template
    return made


def turn_template(family: str, **options: Any) -> TurnTemplate:
    spec = find_spec("trl")
    assert spec is not None and spec.submodule_search_locations is not None
    name, ends = FAMILIES[family]
    file = Path(spec.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja"
    tokenizer = byte_tokenizer(file.read_text(encoding="utf-8"))
    return of_tokenizer(tokenizer, ends, **options)


def of_tokenizer(tokenizer: Any, ends: Sequence[str], **options: Any) -> TurnTemplate:
    end_ids = frozenset(tokenizer.convert_tokens_to_ids(list(ends)))
    return TurnTemplate(tokenizer=tokenizer, end_ids=end_ids, options=options)


def prompt_of(template: TurnTemplate, *messages: dict[str, Any]) -> Prompt:
    text = template.tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True, **template.options
    )
    ids_T = written_tokens(template.tokenizer, text)
    return Prompt(prompt_id="p", token_ids_T=tuple(ids_T), text=list(messages))


class Engine:
    """Answers in turn; keeps what it was asked with and what it gave."""

    def __init__(self, turns: Sequence[Sequence[int]], end_ids: frozenset[int]) -> None:
        self.turns, self.end_ids = [list(turn) for turn in turns], end_ids
        self.asked: list[list[int]] = []
        self.gave: list[SampledTurn] = []

    async def sample(self, ids_T: list[int], most: int) -> SampledTurn:
        self.asked.append(list(ids_T))
        number = len(self.gave)
        given_T = self.turns[number][:most]
        turn = SampledTurn(
            ids_T=given_T,
            logprobs_T=[-float(number) - token / 1000 for token in range(len(given_T))],
            versions_T=[number + (token > 1) for token in range(len(given_T))],
            is_cut=given_T[-1] not in self.end_ids,
        )
        self.gave.append(turn)
        return turn
