"""Preferences of two answers: pairs in all their forms."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rlhf_ray.config.data import BetterConfig
from rlhf_ray.data.formats import choices, fields
from rlhf_ray.data.formats.conversations import (
    aligned,
    alpaca_prompt,
    read_prompt_column,
    split,
    with_system,
)
from rlhf_ray.data.formats.dialogues import (
    ASSISTANT_TURN,
    OPENING,
    begins_a_conversation,
    turns_of,
    with_helpsteer_turns,
)
from rlhf_ray.data.formats.row_format import ALPACA, Fits, RowFormat
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.data.json_values import Messages, Text, unfolded
from rlhf_ray.data.messages import as_chat
from rlhf_ray.data.row import Columns, Row
from rlhf_ray.errors import RowError

_SIDES = ("chosen", "rejected")
# What the scores of both sides are called, if the row has them.
_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))


def read_pair(row: Row) -> Iterator[Sample]:
    """`chosen` and `rejected`, read as the row's prompt wants it."""
    if "prompt" in row.columns:
        return read_preference(row)
    return (read_alpaca_pairs if "instruction" in row.columns else read_implicit_prompt)(row)


def read_arena_pair(row: Row) -> Iterator[Sample]:
    """The same, of a `winner`; a prompt alone where there is none."""
    for sample in read_pair(row):
        yield sample if row.columns["winner"] else replace(sample, answers_K=())


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


def read_implicit_prompt(row: Row) -> Iterator[Sample]:
    """`chosen` and `rejected` as whole conversations; what they share is the prompt.

    Texts must have turns: the prompt ends where the last of the assistant's begins that both have.
    """
    yield _implicit_pair(row, *_sides(row))


def read_common_beginning(row: Row) -> Iterator[Sample]:
    """`chosen` and `rejected` as texts; the words that both begin with are the prompt."""
    chosen, rejected = fields.string(row, "chosen"), fields.string(row, "rejected")
    num_shared = _num_shared_characters(chosen, rejected)
    yield _pair(row, *_parted(row, chosen, rejected, num_shared))


def read_hh(row: Row) -> Iterator[Sample]:
    """`chosen` and `rejected` as transcripts of Human and Assistant, taken as they stand.

    The prompt ends where the last of the assistant's turns begins that both have begun alike.
    """
    chosen, rejected = fields.string(row, "chosen"), fields.string(row, "rejected")
    for transcript in (chosen, rejected):
        turns_of(row, transcript)  # to be sure that it is one
    before, turn, _ = chosen[: _num_alike(chosen, rejected)].rpartition(ASSISTANT_TURN)
    yield _pair(row, *_parted(row, chosen, rejected, len(before + turn)))


def read_hh_chat(row: Row) -> Iterator[Sample]:
    """The same transcripts as chats, for a chat template."""
    chosen, rejected = (turns_of(row, fields.string(row, side)) for side in _SIDES)
    yield _implicit_pair(row, chosen, rejected)


def _reads(prompt_of: Callable[[Row], Messages]) -> Callable[[Row], Iterator[Sample]]:
    """A reader of `chosen` and `rejected` behind a prompt that other columns make."""

    def read(row: Row) -> Iterator[Sample]:
        chosen, rejected = _sides(row)
        yield _pair(row, prompt_of(row), chosen, rejected)

    return read


read_alpaca_pairs = _reads(alpaca_prompt)
read_sharegpt_pairs = _reads(lambda row: with_system(row, fields.messages(row, "conversations")))


def read_alpaca_outputs(row: Row) -> Iterator[Sample]:
    """Alpaca's instruction with `output: [chosen, rejected]` (LLaMA-Factory's)."""
    sides = fields.texts(row, "output")
    if len(sides) != 2:
        raise RowError(row.where, "wrong type", f"'output' must hold 2 answers, got {len(sides)}")
    yield _pair(row, alpaca_prompt(row), *sides)


def _implicit_pair(row: Row, chosen: Text, rejected: Text) -> Sample:
    """A pair whose prompt is what both answers begin with."""
    shared, better, worse = _without_shared(row, chosen, rejected)
    return _pair(
        row, shared if isinstance(shared, str) else with_system(row, shared), better, worse
    )


def _without_shared(row: Row, chosen: Text, rejected: Text) -> tuple[Any, Any, Any]:
    """What two texts with turns or two conversations begin with alike, and how each goes on."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        openings = OPENING.finditer(chosen[: _num_alike(chosen, rejected)])
        num_shared = max((opening.end() for opening in openings), default=0)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        num_shared = _num_shared_messages(chosen, rejected)
    else:
        one, other = (row.called(side) for side in _SIDES)
        detail = f"{one!r} and {other!r} must both be texts, or both be chats"
        raise RowError(row.where, "wrong type", detail)
    return _parted(row, chosen, rejected, num_shared)


def _parted(row: Row, chosen: Any, rejected: Any, num_shared: int) -> tuple[Any, Any, Any]:
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
    return Sample.of(
        row,
        prompt_text,
        better,
        worse,
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


def _hold_whole(columns: Columns) -> bool:
    """Both answers are conversations from their beginning, or transcripts with turns."""
    return all(begins_a_conversation(columns[side]) for side in _SIDES)


def _are_transcripts(columns: Columns) -> bool:
    return all(ASSISTANT_TURN in str(columns[side]) for side in _SIDES)


def _is_object(name: str) -> Fits:
    return lambda columns: isinstance(unfolded(columns[name]), dict)


_format = partial(RowFormat, kind="preferences")
_STRENGTHS = {"a": [-3, -2, -1], "b": [1, 2, 3], "tie": 0}
# Published pairs whose better side is named by a label, and the same as data.columns names them.
CHOICE_FORMATS = (
    _format(
        name="arena", columns=("conversation_a", "conversation_b", "winner"), prompt_columns=(),
        names={"a": "conversation_a", "b": "conversation_b", "better": choices.ARENA_WINNER},
        prepare=choices.by_label, read=read_pair,
    ),
    _format(
        name="arena_texts", columns=choices.ARENA_TEXTS, reads_prompt=True,
        fits=lambda columns: bool({"winner", *choices.ARENA_FLAGS} & columns.keys())
        or choices.hold_turn_lists(columns),
        prepare=choices.of_arena_texts, read=read_arena_pair,
    ),
    _format(
        name="pku_saferlhf", columns=("prompt", "response_0", "response_1", "better_response_id"),
        names={"a": "response_0", "b": "response_1",
               "better": BetterConfig(column="better_response_id", a=0, b=1)},
        prepare=choices.by_label, read=read_pair,
        note="better_response_id (helpfulness) says which answer is better; for safety set "
        "data.columns: {a: response_0, b: response_1, better: {column: safer_response_id, a: 0, "
        "b: 1}}",
    ),
    _format(
        name="shp", columns=("history", "human_ref_A", "human_ref_B", "labels"),
        names={"prompt": "history", "a": "human_ref_A", "b": "human_ref_B",
               "better": BetterConfig(column="labels", a=1, b=0)},
        prepare=choices.by_label, read=read_pair, prompt_columns=("history",),
    ),
    _format(
        name="helpsteer3", columns=("context", "response1", "response2", "overall_preference"),
        names={"prompt": "context", "a": "response1", "b": "response2",
               "better": BetterConfig(column="overall_preference", **_STRENGTHS)},
        prepare=choices.by_label, read=read_pair, prompt_columns=("context",),
    ),
    _format(
        name="helpsteer2_preference",
        columns=("prompt", "response_1", "response_2", "preference_strength"),
        names={"a": "response_1", "b": "response_2",
               "better": BetterConfig(column="preference_strength", **_STRENGTHS)},
        prepare=lambda row: choices.by_label(with_helpsteer_turns(row)), read=read_pair,
        reads_prompt=True,
    ),
    _format(
        name="webgpt", columns=("question", "answer_0", "answer_1", "score_0", "score_1"),
        fits=_is_object("question"),
        names={"prompt": "question.full_text", "a": "answer_0", "b": "answer_1",
               "score_a": "score_0", "score_b": "score_1"},
        prepare=choices.by_scores, read=read_pair, prompt_columns=("question",),
    ),
    _format(
        name="summarize_feedback", columns=("info", "summaries", "choice"),
        names={"a": "summaries.0.text", "b": "summaries.1.text",
               "better": BetterConfig(column="choice", a=0, b=1)},
        prepare=choices.of_summaries, read=read_pair, prompt_columns=("info",),
    ),
    _format(
        name="alpaca_farm", columns=("instruction", "output_1", "output_2", "preference"),
        names={"a": "output_1", "b": "output_2"},
        prepare=choices.by_grade, read=read_pair, prompt_columns=ALPACA,
    ),
    _format(
        name="llmbar", columns=("input", "output_1", "output_2", "label"),
        names={"prompt": "input", "a": "output_1", "b": "output_2",
               "better": BetterConfig(column="label", a=1, b=2)},
        prepare=choices.by_label, read=read_pair, prompt_columns=("input",),
    ),
    _format(
        name="pandalm", columns=("instruction", "response1", "response2", "annotator1"),
        names={"a": "response1", "b": "response2", "better": BetterConfig(
               column=["annotator1", "annotator2", "annotator3"], a=1, b=2, tie=0)},
        prepare=choices.by_label, read=read_pair, prompt_columns=ALPACA,
    ),
    _format(
        name="choice", columns=("a", "b", "better"), prompt_columns=("prompt", *ALPACA),
        prepare=choices.by_label, read=read_pair,
    ),
    _format(
        name="scored_choice", columns=("a", "b", "score_a", "score_b"),
        prompt_columns=("prompt", *ALPACA), prepare=choices.by_scores, read=read_pair,
    ),
)  # fmt: skip
PAIR_FORMATS = (
    _format(name="preference", columns=("prompt", *_SIDES), read=read_preference),
    _format(
        name="openai_preference", columns=("input", "preferred_output", "non_preferred_output"),
        fits=_is_object("input"), read=read_preference, prompt_columns=("input",),
        names={"prompt": "input.messages", "tools": "input.tools", "chosen": "preferred_output",
               "rejected": "non_preferred_output"},
    ),
    _format(
        name="message_pairs", columns=("chosen_messages", "rejected_messages"),
        names={"chosen": "chosen_messages", "rejected": "rejected_messages"},
        read=read_implicit_prompt, prompt_columns=(),
    ),
    _format(
        name="sharegpt_pairs", columns=("conversations", *_SIDES), read=read_sharegpt_pairs,
        prompt_columns=("conversations",),
    ),
    _format(
        name="alpaca_pairs", columns=("instruction", *_SIDES), read=read_alpaca_pairs,
        prompt_columns=ALPACA,
    ),
    _format(
        name="alpaca_outputs", columns=("instruction", "output"), read=read_alpaca_outputs,
        fits=lambda columns: isinstance(columns["output"], list) and len(columns["output"]) == 2,
        prompt_columns=ALPACA,
    ),
    _format(
        name="hh", columns=_SIDES, fits=_are_transcripts, read=read_hh, read_chat=read_hh_chat,
        prompt_columns=(),
    ),
    _format(
        name="implicit_prompt", columns=_SIDES, fits=_hold_whole, read=read_implicit_prompt,
        prompt_columns=(),
    ),
    _format(  # only where the configuration says so
        name="common_beginning", columns=_SIDES, fits=lambda columns: False,
        read=read_common_beginning, prompt_columns=(),
    ),
)  # fmt: skip
