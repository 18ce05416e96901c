"""Tokens of an answer to a prompt, alike wherever a model that judges answers reads one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answer_tokens(
    prompt: str | list[dict[str, str]], answer: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and of the answer with its end token.

    Args:
        prompt: Text, or chat messages, which go through the tokenizer's chat template.
        answer: Text that follows it.
        tokenizer: Of the model that reads both.
    """
    if isinstance(prompt, str):
        before: list[int] = tokenizer(prompt)["input_ids"]
        whole: list[int] = tokenizer(prompt + answer)["input_ids"]
    else:
        messages = [*prompt, {"role": "assistant", "content": answer}]
        before = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_dict=False
        )
        whole = tokenizer.apply_chat_template(messages, return_dict=False)
    if whole[: len(before)] != before:
        whole = before + tokenizer(answer, add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    if isinstance(prompt, str) and end is not None and whole[-1:] != [end]:
        whole = [*whole, end]
    return before, whole[len(before) :]
