"""Row formats without preferences: chats, prompts with completions, texts, instructions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from rlhf_ray.data.errors import RowError
from rlhf_ray.data.formats import fields
from rlhf_ray.data.formats.conversations import read_prompt_column, split, system_turn, with_system
from rlhf_ray.data.formats.samples import Sample, best_answer
from rlhf_ray.data.json_values import unfolded
from rlhf_ray.data.messages import Messages, Text, as_chat, parse_messages
from rlhf_ray.data.row import Row


def read_prompt(row: Row) -> Iterator[Sample]:
    """`prompt`: text, or a chat that the policy answers or goes on with."""
    yield Sample(sample_id=row.row_id, where=row.where, prompt=read_prompt_column(row))


def read_text(row: Row) -> Iterator[Sample]:
    """`text`."""
    text = fields.string(row, "text")
    yield Sample(sample_id=row.row_id, where=row.where, prompt=None, answers_K=(text,))


def read_prompt_completion(row: Row) -> Iterator[Sample]:
    """`prompt` and `completion`, each text or messages; `truncated` where it was cut off."""
    prompt, completion = aligned(row, read_prompt_column(row), fields.answer(row, "completion"))
    yield Sample(
        sample_id=row.row_id,
        where=row.where,
        prompt=prompt,
        answers_K=(completion,),
        truncated_K=(fields.optional_truth(row, "truncated"),),
    )


def read_unpaired(row: Row) -> Iterator[Sample]:
    """`prompt`, `completion` and a `label` that says whether it is good."""
    desirable = fields.truth(row, "label")
    for sample in read_prompt_completion(row):
        yield replace(sample, desirable=desirable)


def read_input_target(row: Row) -> Iterator[Sample]:
    """`input` and `target`, each text or messages; a target may be a number."""
    columns = {**row.columns, "prompt": fields.column(row, "input"), "completion": None}
    names = {**row.names, "prompt": row.called("input")}
    prompt = read_prompt_column(replace(row, columns=columns, names=names))
    prompt, target = aligned(row, prompt, fields.answer(row, "target"))
    yield Sample(sample_id=row.row_id, where=row.where, prompt=prompt, answers_K=(target,))


def read_messages(row: Row) -> Iterator[Sample]:
    """`messages`: a chat with `role` and `content`; a `system` text may stand beside it."""
    yield _chat(row, fields.messages(row, "messages"))


def read_prompt_messages(row: Row) -> Iterator[Sample]:
    """`messages` (or `conversations`) beside the `prompt` with which the chat begins.

    A prompt that the chat does not hold comes before it, if the assistant goes on.
    """
    name = "messages" if row.columns.get("messages") is not None else "conversations"
    chat = fields.messages(row, name)
    if fields.is_blank(row, "prompt"):
        yield _chat(row, chat)
        return
    asked = as_chat(fields.text(row, "prompt"), "user")
    before, turns = aligned(row, asked, chat)
    whole = with_system(row, [*as_chat(before, "user"), *as_chat(turns, "assistant")])
    if chat[0]["role"] != "assistant":
        yield Sample(sample_id=row.row_id, where=row.where, prompt=None, answers_K=(whole,))
    else:
        prompt = whole[: len(whole) - len(turns)]
        yield Sample(sample_id=row.row_id, where=row.where, prompt=prompt, answers_K=(turns,))


def read_labelled_messages(row: Row) -> Iterator[Sample]:
    """`messages`, and a `label` that says whether what the assistant says last is good."""
    desirable = fields.truth(row, "label")
    for whole in read_messages(row):
        prompt, answer = best_answer(whole)
        yield replace(whole, prompt=prompt, answers_K=(answer,), desirable=desirable)


def read_turns(row: Row) -> Iterator[Sample]:
    """`turns`: texts of user and assistant by turns, the user's first (LIMA, UltraChat)."""
    texts = [fields.checked_text(row, "turns", text) for text in fields.items(row, "turns")]
    roles = itertools.cycle(("user", "assistant"))
    chat = zip(roles, texts, strict=False)
    yield _chat(row, [{"role": role, "content": text} for role, text in chat])


def read_exchanges(row: Row) -> Iterator[Sample]:
    """`conversation`: a list of what was asked and answered, `input` and `output` (Capybara).

    Or `human` and `assistant` (ms-swift); the first may have a `system` as well (xtuner).
    """
    chat: Messages = []
    for number, exchange in enumerate(fields.items(row, "conversation")):
        if not isinstance(exchange, dict):
            raise RowError(row.where, "wrong type", f"exchange {number} must be an object")
        turns = list(zip(("user", "assistant"), _keys_of(exchange), strict=True))
        if exchange.get("system"):
            if number:
                detail = f"exchange {number} has a `system`, which the first alone may have"
                raise RowError(row.where, "wrong type", detail)
            turns.insert(0, ("system", "system"))
        for role, key in turns:
            content = fields.checked_text(row, f"conversation.{number}.{key}", exchange.get(key))
            chat.append({"role": role, "content": content})
    yield _chat(row, chat)


def is_exchange(exchange: Mapping[str, Any]) -> bool:
    """Whether an object is what was asked and answered."""
    return set(_keys_of(exchange)) <= exchange.keys()


def _keys_of(exchange: Mapping[str, Any]) -> tuple[str, str]:
    return ("human", "assistant") if "human" in exchange else ("input", "output")


def read_sharegpt(row: Row) -> Iterator[Sample]:
    """`conversations`: a chat with `from` and `value`; a `system` text may stand beside it."""
    yield _chat(row, fields.messages(row, "conversations"))


def read_alpaca(row: Row) -> Iterator[Sample]:
    """`instruction` and `output`, with `input`, `system` and `history` where there are any."""
    answer = as_chat(fields.written(row, "output"), "assistant")
    yield _chat(row, alpaca_prompt(row) + answer)


def read_instruction(row: Row) -> Iterator[Sample]:
    """The same as a prompt alone."""
    yield Sample(sample_id=row.row_id, where=row.where, prompt=alpaca_prompt(row))


def read_calls(row: Row) -> Iterator[Sample]:
    """`query`, and `answers` that are calls of tools, as a list or its JSON text (xLAM)."""
    asked = {"role": "user", "content": fields.string(row, "query")}
    calling = {"role": "assistant", "tool_calls": fields.column(row, "answers")}
    yield _chat(row, parse_messages([asked, calling], row.where, row.called("answers")))


def read_self_instruct(row: Row) -> Iterator[Sample]:
    """`instruction`, and several `instances` with an `input` and an `output` each."""
    for number, instance in enumerate(fields.items(row, "instances")):
        if not isinstance(instance, dict):
            raise RowError(row.where, "wrong type", f"instance {number} must be an object")
        row_id = f"{row.row_id}/{number}" if number else row.row_id
        yield from read_alpaca(replace(row, row_id=row_id, columns={**row.columns, **instance}))


def alpaca_prompt(row: Row) -> Messages:
    """System text, the turns before, and the instruction with its input below it.

    Raises:
        RowError: A part has the wrong type.
    """
    parts = [fields.string(row, "instruction"), fields.optional_string(row, "input")]
    asked = "\n".join(part for part in parts if part.strip())
    chat = system_turn(row)
    history = unfolded(row.columns.get("history"))
    for turn in fields.items(row, "history") if history else []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowError(row.where, "wrong type", "'history' must hold [question, answer] pairs")
        for role, text in zip(("user", "assistant"), turn, strict=True):
            content = fields.checked_text(row, "history", text)
            chat.append({"role": role, "content": content})
    return [*chat, {"role": "user", "content": asked}]


def aligned(row: Row, prompt: Text, answer: Text) -> tuple[Text, Text]:
    """Prompt and answer both as text, or both as messages.

    An answer that is a whole conversation has the prompt in it as well. A text goes on with a turn
    of the assistant that the prompt has begun.

    Raises:
        RowError: The answer is not the assistant's, or prompt and conversation differ.
    """
    if isinstance(prompt, str) and isinstance(answer, str):
        return prompt, answer
    chat, turns = as_chat(prompt, "user"), as_chat(answer, "assistant")
    if turns[0]["role"] != "assistant":
        chat, turns = split(row, chat, turns)
    elif chat[-1]["role"] == "assistant" and not isinstance(answer, str):
        detail = "prompt and answer are two turns of the assistant; to go on with one, give a text"
        raise RowError(row.where, "roles out of order", detail)
    if not turns or turns[-1]["role"] != "assistant":
        detail = f"an answer ends with the {(turns or chat)[-1]['role']}'s turn"
        raise RowError(row.where, "roles out of order", f"{detail}, not with the assistant's")
    return chat, turns


def _chat(row: Row, chat: Messages) -> Sample:
    whole = with_system(row, chat)
    return Sample(sample_id=row.row_id, where=row.where, prompt=None, answers_K=(whole,))
