"""How a prompt and an answer become tokens: the one way for training and for scoring alike.

A prompt's tokens are those that a rollout starts from, whatever follows them. Where tokenizing both
together keeps them, that is the natural sequence; where it would merge across the border, the
answer is tokenized on its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_ray.data.chat import render
from rlhf_ray.data.errors import DataError
from rlhf_ray.data.fields import Messages, Text
from rlhf_ray.data.samples import as_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, *, where: str = "a prompt"
) -> list[int]:
    """Token ids that an answer is sampled after.

    Text is tokenized as it stands, with the special tokens that the tokenizer adds by itself. Chat
    messages go through the chat template, which writes all special tokens itself; if the last is
    the assistant's, it is to be continued.

    Raises:
        DataError: A chat, and no template for it.
        RowError: The template refuses the chat.
    """
    if isinstance(prompt, str):
        token_ids_T: list[int] = tokenizer(prompt, verbose=False)["input_ids"]
        return token_ids_T
    return _tokens_as_written(tokenizer, _opened(tokenizer, prompt, where))


def tokenize_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Text,
    answer: Text,
    *,
    is_ended: bool = True,
    where: str = "an answer",
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of an answer to it; together they are what a model is shown.

    Text as an answer to text gets the tokenizer's end token. An encoder's tokenizer, which closes
    every text with a separator, puts its own special tokens around both. An answer to a chat is
    rendered with it, to the end that the template writes; where the chat ends with the assistant's
    turn, as part of that turn. An answer that was cut off (`is_ended` is False) gets no end.

    Raises:
        DataError: No chat template, no end token, or a template whose prompts change when an answer
            follows.
        RowError: The template refuses the chat.
    """
    if not isinstance(prompt, str) or not isinstance(answer, str):
        return _chat_answer(tokenizer, as_chat(prompt, "user"), answer, is_ended, where)
    prompt_ids_T = tokenize_prompt(tokenizer, prompt)
    if _separates(tokenizer, prompt_ids_T):
        pair_T: list[int] = tokenizer(prompt, answer, verbose=False)["input_ids"]
        return prompt_ids_T, pair_T[len(prompt_ids_T) :]
    whole_T: list[int] = tokenizer(prompt + answer, verbose=False)["input_ids"]
    if whole_T[: len(prompt_ids_T)] == prompt_ids_T:
        answer_ids_T = whole_T[len(prompt_ids_T) :]
    else:
        answer_ids_T = _tokens_as_written(tokenizer, answer)
    return prompt_ids_T, with_end(tokenizer, answer_ids_T) if is_ended else answer_ids_T


def with_end(tokenizer: PreTrainedTokenizerBase, token_ids_T: list[int]) -> list[int]:
    """The same tokens, ended by the end token.

    Raises:
        DataError: The tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(f"the tokenizer {tokenizer.name_or_path!r} has no end token")
    if token_ids_T and token_ids_T[-1] == tokenizer.eos_token_id:
        return token_ids_T
    return [*token_ids_T, tokenizer.eos_token_id]


def _chat_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Messages,
    answer: Text,
    is_ended: bool,
    where: str,
) -> tuple[list[int], list[int]]:
    opened = _opened(tokenizer, prompt, where)
    chat = _answered(prompt, as_chat(answer, "assistant"))
    whole: str = (
        render(tokenizer, chat, where, tokenize=False)
        if is_ended
        else _opened(tokenizer, chat, where)
    )
    if not whole.startswith(opened):
        raise DataError(
            f"{where}: the chat template renders a prompt differently when an answer follows, so "
            "that training would see other prompts than sampling: set another chat_template"
        )
    prompt_ids_T = _tokens_as_written(tokenizer, opened)
    whole_T = _tokens_as_written(tokenizer, whole)
    if whole_T[: len(prompt_ids_T)] == prompt_ids_T:
        return prompt_ids_T, whole_T[len(prompt_ids_T) :]
    return prompt_ids_T, _tokens_as_written(tokenizer, whole[len(opened) :])


def _answered(prompt: Messages, answer: Messages) -> Messages:
    """The chat with its answer, which goes on with the assistant's turn where that is begun."""
    begun = prompt[-1]
    if begun["role"] != "assistant":
        return [*prompt, *answer]
    said, *later = answer
    return [*prompt[:-1], {**begun, "content": begun["content"] + said["content"]}, *later]


def _opened(tokenizer: PreTrainedTokenizerBase, prompt: Messages, where: str) -> str:
    """A chat, rendered up to where the policy's own words begin."""
    continues = prompt[-1]["role"] == "assistant"
    text: str = render(
        tokenizer,
        prompt,
        where,
        tokenize=False,
        add_generation_prompt=not continues,
        continue_final_message=continues,
    )
    return text


def _tokens_as_written(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens without any that the tokenizer would add by itself."""
    token_ids_T: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return token_ids_T


def _separates(tokenizer: PreTrainedTokenizerBase, text_ids_T: list[int]) -> bool:
    """Whether the tokenizer closes a text by itself, as those of encoders do."""
    separator = tokenizer.sep_token_id
    return separator is not None and text_ids_T[-1:] == [separator]
