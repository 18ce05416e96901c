"""Row formats with preferences: pairs in all their forms, rankings, and trees of replies."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterator, Sequence
from typing import Any

from rlhf_ray.data.errors import RowError
from rlhf_ray.data.formats import fields
from rlhf_ray.data.formats.conversations import read_prompt_column, split, with_system
from rlhf_ray.data.formats.plain import aligned, alpaca_prompt
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.data.formats.transcripts import turns_of
from rlhf_ray.data.json_values import unfolded
from rlhf_ray.data.messages import Messages, Text, as_chat, is_written_chat
from rlhf_ray.data.row import Row

_SIDES = ("chosen", "rejected")
# What the scores of both sides are called, if the row has them.
_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
_ASSISTANT = "\n\nAssistant:"
# What opens an answer in a text that holds a conversation: HH's, Alpaca's, templates' own marks.
_OPENING = re.compile(
    r"(?:^|\n)(?:### *)?(?:Assistant|ASSISTANT|Response|AI|Bot) *:"
    r"|<\|im_start\|>assistant\n|<\|assistant\|>\n?|\[/INST\]|<start_of_turn>model\n"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n|<\|Assistant\|>|<｜Assistant｜>"
)
_ANSWERING = ("assistant", "gpt", "model")


def read_preference(row: Row) -> Iterator[Sample]:
    """`prompt`, `chosen` and `rejected`, each text or messages.

    Answers that are whole conversations have the prompt in them as well.
    """
    chosen, rejected = _sides(row)
    if _is_conversation(chosen) and _is_conversation(rejected):
        shared, better, worse = _without_shared(row, chosen, rejected)
        prompt, later = split(row, as_chat(fields.text(row, "prompt"), "user"), shared)
        yield _pair(row, with_system(row, prompt + later), better, worse)
    else:
        yield _pair(row, read_prompt_column(row), chosen, rejected)


def begins_a_conversation(value: Any) -> bool:
    """Whether a value is a conversation from its beginning, or a text with turns of an assistant.

    An answer alone is neither: what two answers begin with alike is not what was asked.
    """
    if isinstance(value, str):
        if not is_written_chat(value):
            return _OPENING.search(value) is not None
        value = unfolded(value)
    first = value[0] if isinstance(value, list) and value else None
    speaker = first.get("role", first.get("from")) if isinstance(first, dict) else "assistant"
    return speaker not in _ANSWERING


def read_implicit_prompt(row: Row) -> Iterator[Sample]:
    """`chosen` and `rejected` as whole conversations; what they share is the prompt.

    Texts must have turns: the prompt ends where the last of the assistant's begins that both have.
    """
    shared, better, worse = _without_shared(row, *_sides(row))
    yield _pair(row, shared if isinstance(shared, str) else with_system(row, shared), better, worse)


def read_common_beginning(row: Row) -> Iterator[Sample]:
    """`chosen` and `rejected` as texts; the words that both begin with are the prompt."""
    chosen, rejected = fields.string(row, "chosen"), fields.string(row, "rejected")
    num_shared = _num_shared_characters(chosen, rejected)
    if not num_shared:
        raise _no_common_prompt(row)
    yield _pair(row, chosen[:num_shared], chosen[num_shared:], rejected[num_shared:])


def read_hh(row: Row) -> Iterator[Sample]:
    """`chosen` and `rejected` as transcripts of Human and Assistant, taken as they stand.

    The prompt ends where the last of the assistant's turns begins that both have begun alike.
    """
    chosen, rejected = fields.string(row, "chosen"), fields.string(row, "rejected")
    for transcript in (chosen, rejected):
        turns_of(row, transcript)  # to be sure that it is one
    shared = chosen[: _num_alike(chosen, rejected)]
    border = shared.rfind(_ASSISTANT) + len(_ASSISTANT)
    if border < len(_ASSISTANT):
        raise _no_common_prompt(row)
    yield _pair(row, chosen[:border], chosen[border:], rejected[border:])


def read_hh_chat(row: Row) -> Iterator[Sample]:
    """The same transcripts as chats, for a chat template."""
    chosen = turns_of(row, fields.string(row, "chosen"))
    rejected = turns_of(row, fields.string(row, "rejected"))
    num_shared = _num_shared_messages(chosen, rejected)
    if not num_shared:
        raise _no_common_prompt(row)
    prompt = with_system(row, chosen[:num_shared])
    yield _pair(row, prompt, chosen[num_shared:], rejected[num_shared:])


def read_sharegpt_pairs(row: Row) -> Iterator[Sample]:
    """`conversations` as the prompt, `chosen` and `rejected` as one message each."""
    chosen, rejected = _sides(row)
    prompt = with_system(row, fields.messages(row, "conversations"))
    yield _pair(row, prompt, chosen, rejected)


def read_alpaca_pairs(row: Row) -> Iterator[Sample]:
    """Alpaca's instruction with `chosen` and `rejected`."""
    chosen, rejected = _sides(row)
    yield _pair(row, alpaca_prompt(row), chosen, rejected)


def read_alpaca_outputs(row: Row) -> Iterator[Sample]:
    """Alpaca's instruction with `output: [chosen, rejected]` (LLaMA-Factory's)."""
    sides = fields.texts(row, "output")
    if len(sides) != 2:
        raise RowError(row.where, "wrong type", f"'output' must hold 2 answers, got {len(sides)}")
    yield _pair(row, alpaca_prompt(row), *sides)


def _without_shared(row: Row, chosen: Text, rejected: Text) -> tuple[Any, Any, Any]:
    """What two texts with turns or two conversations begin with alike, and how each goes on."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        openings = _OPENING.finditer(chosen[: _num_alike(chosen, rejected)])
        num_shared = max((opening.end() for opening in openings), default=0)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        num_shared = _num_shared_messages(chosen, rejected)
    else:
        one, other = (row.called(side) for side in _SIDES)
        detail = f"{one!r} and {other!r} must both be texts, or both be chats"
        raise RowError(row.where, "wrong type", detail)
    if not num_shared:
        raise _no_common_prompt(row)
    return chosen[:num_shared], chosen[num_shared:], rejected[num_shared:]


def _no_common_prompt(row: Row) -> RowError:
    one, other = (row.called(side) for side in _SIDES)
    detail = (
        f"{one!r} and {other!r} begin differently: give both the turns that come before the two "
        "answers, or name their prompt by data.columns: {prompt: ...}, or leave such rows out by "
        "data.on_bad_row: skip"
    )
    return RowError(row.where, "no common prompt", detail)


def _pair(row: Row, prompt: Text, chosen: Text, rejected: Text) -> Sample:
    prompt_text, better = aligned(row, prompt, chosen)
    same_prompt, worse = aligned(row, prompt, rejected)
    if isinstance(prompt_text, str) != isinstance(same_prompt, str):  # one side is a chat
        prompt_text = as_chat(prompt_text, "user")
        better, worse = as_chat(better, "assistant"), as_chat(worse, "assistant")
        same_prompt = as_chat(same_prompt, "user")
    if prompt_text != same_prompt:
        raise _no_common_prompt(row)
    names: tuple[str, ...] = _SCORES[0]
    if all(fields.is_blank(row, name) for name in names):
        pairs = (pair for pair in _SCORES if not any(fields.is_blank(row, name) for name in pair))
        names = next(pairs, ())
    margin = fields.optional_number(row, "margin")
    if margin is not None and margin < 0:
        detail = (
            f"{row.called('margin')!r} says by how much {row.called('chosen')!r} is better, got "
            f"{margin:g}: swap the answers"
        )
        raise RowError(row.where, "negative margin", detail)
    return Sample(
        sample_id=row.row_id,
        where=row.where,
        prompt=prompt_text,
        answers_K=(better, worse),
        levels_K=tuple(fields.number(row, name) for name in names),
        truncated_K=tuple(fields.optional_truth(row, f"truncated_{side}") for side in _SIDES),
        margin=margin,
    )


def _sides(row: Row) -> tuple[Text, Text]:
    chosen, rejected = fields.text(row, "chosen"), fields.text(row, "rejected")
    return chosen, rejected


def _is_conversation(answer: Text) -> bool:
    return isinstance(answer, list) and answer[0]["role"] != "assistant"


def _num_alike(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many elements are the same before the first that is not."""
    return sum(1 for _ in itertools.takewhile(bool, map(operator.eq, one, other)))


def _num_shared_messages(chosen: Messages, rejected: Messages) -> int:
    """Messages before the first that differs, those of the assistant at their end left out."""
    num_shared = min(_num_alike(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    while num_shared and chosen[num_shared - 1]["role"] == "assistant":
        num_shared -= 1
    return num_shared


def _num_shared_characters(chosen: str, rejected: str) -> int:
    """Where the last word begins that both have begun alike, with the space before it."""
    if chosen == rejected:
        return len(chosen.rstrip().rpartition(" ")[0])
    shared = chosen[: _num_alike(chosen, rejected)]
    return max((match.start() for match in re.finditer(r"\s+", shared)), default=0)
