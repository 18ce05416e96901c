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
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ray.data.chat.borders import Tokenizer, decode, text_tokens, tokens_behind, written_tokens
from rlhf_ray.data.chat.template import PLACEHOLDER, ChatTemplate
from rlhf_ray.data.chat.turn_end import checked_turn_end, known_ends, with_end
from rlhf_ray.data.chat.turns import renderings
from rlhf_ray.data.chat_options import template_options
from rlhf_ray.data.json_values import Messages, Text
from rlhf_ray.data.messages import as_chat
from rlhf_ray.errors import DataError, RowError

_TAG = re.compile(r"</?[^<>\s]+>")


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
    also closes it with a separator. Chat messages go through the chat template, which gets
    `options` beside them and writes all special tokens itself; if the last is the assistant's, it
    is to be continued.

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
    return written_tokens(tokenizer, _opened(template, prompt))


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
    the prompt has such turns), unless it ends with an end token already or was cut off, `is_ended`
    being false. An encoder's tokenizer, which closes every text with a separator, puts its own
    special tokens around both. An answer to a chat is rendered with it, to the end of its turn;
    where the chat ends with the assistant's turn, as part of that turn.

    What a policy wrote (`is_sampled`, and whatever was cut off) the template leaves as it is. Where
    that policy had another template (`is_foreign`), the empty reasoning that some templates write
    in front of an answer is there as well, if the answer has none.

    Raises:
        DataError: No chat template, no end token, or a template whose prompts change when an answer
            follows.
        RowError: The template refuses the chat, or leaves out a message.
    """
    if not isinstance(prompt, str) or not isinstance(answer, str):
        chat, turns = as_chat(prompt, "user"), as_chat(answer, "assistant")
        template = ChatTemplate(tokenizer=tokenizer, where=where, options=options or {})
        if is_sampled or not is_ended:
            frame = _frame_of(template, _answered(chat, turns), chat)
            written = frame.written(frame.text, is_ended=is_ended, is_foreign=is_foreign)
            shown = frame.opened
        else:
            shown, written = _rendered(template, chat, turns)
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
    """The same of each answer of a row, of whose other columns the chat template gets some.

    What a policy wrote says by `truncated_K` whether it was cut off, as in `Sample`.

    Raises:
        RowError, DataError: As in `tokenize_answer`.
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
    stop string ended gets an end token. `end_ids` end a response for those who sampled it.

    Raises:
        RowError, DataError: As in `tokenize_answer`.
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
    frame = _frame_of(template, _answered(prompt, as_chat("", "assistant")), prompt)
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


@dataclass(frozen=True, kw_only=True)
class _Frame:
    r"""What a template puts around an answer.

    Attributes:
        opened: The prompt, up to where the policy's words begin.
        context: What stands between it and the answer; of several messages, those before the last.
        lead: What the template writes before the answer: a space, or reasoning that is empty.
        text: The answer.
        end: What ends it.
    """

    opened: str
    context: str
    lead: str
    text: str
    end: str

    def written(self, text: str, *, is_ended: bool, is_foreign: bool) -> str:
        """The answer behind the opened prompt, with no space that it brings itself."""
        lead, end = self.lead, self.end
        if lead.strip() and (not is_foreign or self.brings_reasoning(text)):
            lead = ""
        if text[:1].isspace() and not lead.strip():
            lead = ""
        if text[-1:].isspace():
            end = end.lstrip()
        return self.context + lead + text + end * is_ended

    def brings_reasoning(self, text: str) -> bool:
        """Whether the text has the reasoning that the lead leaves empty, or goes on with it.

        A lead that begins by closing it says that the prompt has opened it.
        """
        closes = self.lead.lstrip().startswith("</")
        return closes or any(tag in text for tag in _TAG.findall(self.lead))


def _frame_of(template: ChatTemplate, chat: Messages, prompt: Messages) -> _Frame:
    """What stands around the last message of a chat whose beginning is `prompt`."""
    *context, last = chat
    shown = _opened(template, prompt)
    continues = len(context) < len(prompt)
    begun = prompt[-1]["content"] if continues else ""
    before = shown if continues else _opened(template, context)
    if not before.startswith(shown):
        raise _changed(template.where)
    held = [*context, {**last, "content": begun + PLACEHOLDER}]
    whole = template.render(held)
    turn, placeholder, behind = whole.rpartition(PLACEHOLDER)
    if not placeholder:
        raise _changed(template.where)
    end = checked_turn_end(template.tokenizer)
    return _Frame(
        opened=shown,
        context=before[len(shown) :],
        lead="" if continues or not turn.startswith(before) else turn[len(before) :],
        text=str(last["content"])[len(begun) :],
        end=behind if end is None else end.of(behind),
    )


def _rendered(template: ChatTemplate, prompt: Messages, answer: Messages) -> tuple[str, str]:
    """A prompt as the template opens it, and the answer as it writes it, to the end token."""
    if prompt[-1]["role"] == "assistant":
        return _continued(template, prompt, answer)
    chat = prompt + answer
    turns = [turn for turn in range(len(prompt), len(chat)) if chat[turn]["role"] == "assistant"]
    whole, *others = renderings(template, chat, turns)
    if others:
        raise _changed(template.where)
    shown = whole.text[: whole.spans[0][0]]
    return shown, whole.text[len(shown) : whole.spans[-1][1]]


def _continued(template: ChatTemplate, prompt: Messages, answer: Messages) -> tuple[str, str]:
    """The same, where the answer goes on with the assistant's turn."""
    end = checked_turn_end(template.tokenizer)
    shown = _opened(template, prompt)
    whole = template.render_all(_answered(prompt, answer))
    if not whole.startswith(shown):
        raise _changed(template.where)
    text = whole[len(shown) :]
    return shown, text if end is None else end.of(text)


def _changed(where: str) -> DataError:
    return DataError(
        f"{where}: the chat template renders a prompt differently when an answer follows, so "
        "that training would see other prompts than sampling: set another chat_template"
    )


def _answered(prompt: Messages, answer: Messages) -> Messages:
    """The chat with its answer, which goes on with the assistant's turn where that is begun."""
    begun = prompt[-1]
    if begun["role"] != "assistant":
        return [*prompt, *answer]
    first, *later = answer
    return [*prompt[:-1], {**begun, "content": begun["content"] + first["content"]}, *later]


def _opened(template: ChatTemplate, prompt: Messages) -> str:
    """A chat, rendered up to where the policy's own words begin."""
    *context, last = prompt
    if last["role"] != "assistant":
        return template.render_all(prompt, add_generation_prompt=True)
    if "tool_calls" in last:
        detail = "a prompt ends with the assistant's tool calls; a turn of the tool must follow"
        raise RowError(template.where, "roles out of order", detail)
    begun = template.render_all(prompt, continue_final_message=True)
    if not context or context[-1]["role"] == "assistant":
        return begun
    frame = _frame_of(template, [*context, {**last, "content": ""}], context)
    if frame.lead.strip() and frame.brings_reasoning(last["content"]):
        # Reasoning that is begun: the template would close it before it was said.
        return frame.opened + str(last["content"])
    return begun
