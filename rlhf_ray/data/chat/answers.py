"""How a prompt and an answer become tokens: the one way for training and for scoring alike.

A prompt's tokens are those that a rollout starts from, whatever follows them. An answer's decode to
the answer behind them, and end with the token that ends a response: what a template writes after
that (ChatML a newline) belongs to no answer.

An answer of a data set is what a turn says, and the template renders it. A sampled answer is what a
policy wrote behind the opened prompt, so it goes there as it stands: a template that parses
reasoning would close a `<think>` that was cut off, and open a second one.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rlhf_ray.data.chat.borders import Tokenizer, decode, text_tokens, tokens_behind, written_tokens
from rlhf_ray.data.chat.frames import answered, frame_of, opened, rendered
from rlhf_ray.data.chat.template import ChatTemplate
from rlhf_ray.data.chat.turn_end import checked_turn_end, known_ends, with_end
from rlhf_ray.data.chat_options import template_options
from rlhf_ray.data.text import Text, as_chat


def tokenize_prompt(
    tokenizer: Tokenizer,
    prompt: Text,
    *,
    options: Mapping[str, Any] | None = None,
    where: str = "a prompt",
) -> list[int]:
    """Token ids that an answer is sampled after.

    Text is tokenized as it stands, behind the begin token that the tokenizer adds by itself (once,
    where the text has it already) and without the end token that some add. An encoder's tokenizer
    also closes it with a separator. Chat messages go through the chat template, which writes all
    special tokens itself; if the last is the assistant's, it is to be continued.

    Args:
        tokenizer: Of the model that is shown it.
        prompt: What an answer follows.
        options: What the chat template gets beside the messages (see `template_options`).
        where: For errors.

    Raises:
        DataError: A chat, and no template for it or one whose end of a turn is no token.
        RowError: The template refuses the chat, or leaves out a message.
    """
    if isinstance(prompt, str):
        if _separates(tokenizer):
            token_ids_T: list[int] = tokenizer(prompt, verbose=False)["input_ids"]
            return token_ids_T
        return text_tokens(tokenizer, prompt)
    checked_turn_end(tokenizer)
    template = ChatTemplate(tokenizer=tokenizer, where=where, options=options or {})
    return written_tokens(tokenizer, opened(template, prompt))


def tokenize_answer(
    tokenizer: Tokenizer,
    prompt: Text,
    answer: Text,
    *,
    is_ended: bool = True,
    is_sampled: bool = False,
    is_foreign: bool = False,
    options: Mapping[str, Any] | None = None,
    where: str = "an answer",
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of an answer to it; together they are what a model is shown.

    Text as an answer to text gets the tokenizer's end token (that of the template's turns, where
    the prompt has such turns), unless it ends with an end token already. An encoder's tokenizer,
    which closes every text with a separator, puts its own special tokens around both. An answer to
    a chat is rendered with it, to the end of its turn; where the chat ends with the assistant's
    turn, as part of that turn.

    Args:
        tokenizer: Of the model that is shown them.
        prompt: What is answered.
        answer: A text; to a chat also messages.
        is_ended: Whether the answer came to its end; one that was cut off gets none.
        is_sampled: Whether the answer is what a policy wrote, as one that was cut off always is:
            then the template leaves it as it is.
        is_foreign: Whether that policy had another template: then the empty reasoning that some
            templates write in front of an answer is there as well, where the answer has none.
        options: As in `tokenize_prompt`.
        where: For errors.

    Raises:
        DataError: No chat template, no end token, or a template whose prompts change when an answer
            follows.
        RowError: The template refuses the chat, or leaves out a message.
    """
    if not isinstance(prompt, str) or not isinstance(answer, str):
        chat, turns = as_chat(prompt, "user"), as_chat(answer, "assistant")
        template = ChatTemplate(tokenizer=tokenizer, where=where, options=options or {})
        if is_sampled or not is_ended:
            frame = frame_of(template, answered(chat, turns), chat)
            written = frame.written(frame.text, is_ended=is_ended, is_foreign=is_foreign)
            shown = frame.opened
        else:
            shown, written = rendered(template, chat, turns)
        prompt_ids_T = written_tokens(tokenizer, shown)
        return prompt_ids_T, tokens_behind(tokenizer, prompt_ids_T, shown, written)
    prompt_ids_T = tokenize_prompt(tokenizer, prompt)
    if _separates(tokenizer):
        pair_T: list[int] = tokenizer(prompt, answer, verbose=False)["input_ids"]
        return prompt_ids_T, pair_T[len(prompt_ids_T) :]
    answer_ids_T = tokens_behind(tokenizer, prompt_ids_T, prompt, answer, tokenize=text_tokens)
    if is_ended:
        answer_ids_T = with_end(tokenizer, answer_ids_T, prompt_ids_T)
    return prompt_ids_T, answer_ids_T


def tokenize_answers(
    tokenizer: Tokenizer,
    prompt: Text,
    answers_K: Sequence[Text],
    *,
    truncated_K: Sequence[bool | None],
    columns: Mapping[str, Any],
    where: str,
) -> list[tuple[list[int], list[int]]]:
    """The same of each answer of a row.

    Args:
        tokenizer: Of the model that is shown them.
        prompt: What is answered.
        answers_K: As many of the row's as are wanted.
        truncated_K: As in `Sample`: what a policy wrote says whether it was cut off.
        columns: The row's others, of which the chat template gets some.
        where: For errors.

    Raises:
        DataError: As in `tokenize_answer`.
        RowError: As in `tokenize_answer`.
    """
    is_chat = any(not isinstance(text, str) for text in (prompt, *answers_K))
    options = template_options(columns, where) if is_chat else {}
    return [
        tokenize_answer(
            tokenizer,
            prompt,
            answer,
            is_ended=not truncated,
            is_sampled=truncated is not None,
            options=options,
            where=where,
        )
        for answer, truncated in itertools.zip_longest(answers_K, truncated_K[: len(answers_K)])
    ]


def tokenize_sampled(
    tokenizer: Tokenizer,
    prompt: Text,
    response_ids_T: Sequence[int],
    *,
    end_ids: Collection[int],
    is_ended: bool,
    options: Mapping[str, Any] | None = None,
    where: str = "a rollout",
) -> tuple[list[int], list[int]]:
    """The same of a response that was sampled in this very vocabulary: it keeps its tokens.

    Only its end may change: an answer to a chat ends as the template here ends one, and one that a
    stop string ended gets an end token.

    Args:
        tokenizer: Of the model that is shown them.
        prompt: What was answered.
        response_ids_T: As sampled.
        end_ids: Tokens that end a response, by those who sampled it.
        is_ended: Whether it came to its end.
        options: As in `tokenize_prompt`.
        where: For errors.

    Raises:
        DataError: As in `tokenize_answer`.
        RowError: As in `tokenize_answer`.
    """
    response_T = list(response_ids_T)
    ends = known_ends(tokenizer)
    last = response_T[-1] if response_T else None
    if is_ended and (last in ends or last in end_ids):
        response_T.pop()
    if isinstance(prompt, str):
        prompt_ids_T = tokenize_prompt(tokenizer, prompt)
        end_T = [last] if last in ends else with_end(tokenizer, [], prompt_ids_T)
        return prompt_ids_T, response_T + end_T * is_ended
    prompt_ids_T = tokenize_prompt(tokenizer, prompt, options=options, where=where)
    end = checked_turn_end(tokenizer)
    if not is_ended:
        return prompt_ids_T, response_T
    if end is not None and end.token_id is not None:
        return prompt_ids_T, [*response_T, end.token_id]
    template = ChatTemplate(tokenizer=tokenizer, where=where, options=options or {})
    frame = frame_of(template, answered(prompt, as_chat("", "assistant")), prompt)
    before_T = prompt_ids_T + response_T
    end_T = tokens_behind(tokenizer, before_T, decode(tokenizer, before_T), frame.end)
    return prompt_ids_T, response_T + end_T


def _separates(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer closes a text by a separator, as those of encoders do.

    A decoder's may close it with its end token, and call that a separator as well.
    """
    separator = tokenizer.sep_token_id
    if separator is None or tokenizer("a", verbose=False)["input_ids"][-1] != separator:
        return False
    return separator != tokenizer.eos_token_id or tokenizer.cls_token_id is not None
