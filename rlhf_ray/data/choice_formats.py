"""Pairs whose better side is named by a label or by two scores, in the forms that are published.

Each form is what `columns` of the configuration would say, so a data set that is not among them is
read by writing that line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rlhf_ray.config.data import BetterConfig
from rlhf_ray.data import fields
from rlhf_ray.data.errors import RowError, short
from rlhf_ray.data.files import Row
from rlhf_ray.data.helpsteer import with_turns
from rlhf_ray.data.messages import json_value
from rlhf_ray.data.parsed_rows import Columns
from rlhf_ray.data.preference_formats import (
    read_alpaca_pairs,
    read_implicit_prompt,
    read_preference,
)
from rlhf_ray.data.row_format import RowFormat
from rlhf_ray.data.samples import Sample

_ALPACA = ("instruction", "input", "system", "history")
_STRENGTHS = {"a": [-3, -2, -1], "b": [1, 2, 3], "tie": 0}
_WINNERS = {"model_a": "a", "model_b": "b", "tie": "tie"}


def read_choice(row: Row) -> Iterator[Sample | RowError]:
    """`a` and `b`, and which of them is `better`: `a`, `b` or `tie`."""
    match fields.column(row, "better"):
        case "a":
            yield from _ordered(row, "a", "b")
        case "b":
            yield from _ordered(row, "b", "a")
        case "tie":
            yield from _ordered(row, "a", "b", scores=(0, 0))
        case other:
            detail = f"column 'better' must say a, b or tie, got {short(other)}"
            raise RowError(row.where, "unknown label", detail)


def read_scored_choice(row: Row) -> Iterator[Sample | RowError]:
    """`a` and `b` with `score_a` and `score_b`; the higher is better, equal ones are a tie."""
    scores = fields.number(row, "score_a"), fields.number(row, "score_b")
    if scores[0] >= scores[1]:
        yield from _ordered(row, "a", "b", scores=scores)
    else:
        yield from _ordered(row, "b", "a", scores=(scores[1], scores[0]))


def read_summaries(row: Row) -> Iterator[Sample | RowError]:
    """Two summaries of a Reddit post or a news article (arXiv 2009.01325, appendix B.5).

    The prompt is the query of that paper, behind which the summaries' own space belongs.
    """
    info = fields.column(row, "info")
    said = {name: str(info.get(name) or "") for name in ("subreddit", "title", "post", "article")}
    query = f"{said['article']}\n\nTL;DR:"
    if said["post"]:
        query = (
            f"SUBREDDIT: r/{said['subreddit']}\n\nTITLE: {said['title']}\n\n"
            f"POST: {said['post']}\n\nTL;DR:"
        )
    yield from read_choice(replace(row, columns={**row.columns, "prompt": query}))


def read_graded_choice(row: Row) -> Iterator[Sample | RowError]:
    """`a` and `b`, and a `preference` from 1, which is for `a`, to 2, which is for `b`.

    AlpacaEval's annotators say in between how sure they are; 1.5 is a tie, as 0 is.
    """
    preference = fields.number(row, "preference")
    if preference != 0 and not 1 <= preference <= 2:
        detail = f"column 'preference' must be from 1 to 2, or 0 for a tie, got {preference:g}"
        raise RowError(row.where, "unknown label", detail)
    better = "tie" if preference in (0, 1.5) else "a" if preference < 1.5 else "b"
    yield from read_choice(replace(row, columns={**row.columns, "better": better}))


def read_listed_choice(row: Row) -> Iterator[Sample | RowError]:
    """Turns of the user and of two models as JSON lists, and which model won, or neither."""
    asked, *said = (_listed_texts(row, name) for name in ("prompt", "response_a", "response_b"))
    if {len(texts) for texts in said} != {len(asked)}:
        detail = f"{len(asked)} turns in 'prompt', {len(said[0])} and {len(said[1])} in the answers"
        raise RowError(row.where, "wrong number of turns", detail)
    chats = [
        [
            {"role": role, "content": text}
            for turns in zip(asked, answers, strict=True)
            for role, text in zip(("user", "assistant"), turns, strict=True)
        ]
        for answers in said
    ]
    sides = {f"winner_{name}": side for name, side in _WINNERS.items()}
    better = next((side for name, side in sides.items() if fields.truth(row, name)), "tie")
    others = {name: value for name, value in row.columns.items() if name != "prompt"}
    columns = {**others, "a": chats[0], "b": chats[1], "better": better}
    yield from read_choice(replace(row, columns=columns))


def _listed_texts(row: Row, name: str) -> list[str]:
    """Texts in a JSON list; what is null there was left empty."""
    texts = json_value(fields.string(row, name), row.where, f"column {name!r}", "a list of texts")
    if not isinstance(texts, list) or not texts:
        raise RowError(row.where, "wrong type", f"column {name!r} must be a list of texts")
    return [fields.checked_text(row, name, "" if text is None else text) for text in texts]


def _are_listed(columns: Columns) -> bool:
    return all(str(columns[name]).startswith("[") for name in ("prompt", "response_a"))


def read_helpsteer_choice(row: Row) -> Iterator[Sample | RowError]:
    """The same as `read_choice`, with turns in the prompt as HelpSteer writes them."""
    yield from read_choice(with_turns(row))


def _ordered(
    row: Row, better: str, worse: str, *, scores: tuple[float, float] | None = None
) -> Iterator[Sample]:
    """The pair with the better answer first, read as the row's prompt wants it."""
    sides = {"chosen": fields.column(row, better), "rejected": fields.column(row, worse)}
    columns = {**row.columns, **sides}
    for side, score in zip(("chosen", "rejected"), scores or (None, None), strict=True):
        columns[f"score_{side}"] = score
    names = {**row.names, "chosen": row.called(better), "rejected": row.called(worse)}
    pair = replace(row, columns=columns, names=names)
    if "prompt" in columns:
        yield from read_preference(pair)
    elif "instruction" in columns:
        yield from read_alpaca_pairs(pair)
    else:
        yield from read_implicit_prompt(pair)


def _better(column: str | list[str], **labels: Any) -> BetterConfig:
    return BetterConfig(column=column, **labels)


CHOICE_FORMATS = (
    # Published pairs whose better side is named by a label.
    RowFormat(
        name="pku_saferlhf",
        kind="preferences",
        columns=("prompt", "response_0", "response_1", "better_response_id"),
        names={"a": "response_0", "b": "response_1", "better": _better("better_response_id", a=0,
               b=1)},
        read=read_choice,
        note="better_response_id (helpfulness) says which answer is better; for safety set "
        "data.columns: {a: response_0, b: response_1, better: {column: safer_response_id, a: 0, "
        "b: 1}}",
    ),
    RowFormat(
        name="shp",
        kind="preferences",
        columns=("history", "human_ref_A", "human_ref_B", "labels"),
        names={"prompt": "history", "a": "human_ref_A", "b": "human_ref_B",
               "better": _better("labels", a=1, b=0)},
        read=read_choice,
        prompt_columns=("history",),
    ),
    RowFormat(
        name="helpsteer3",
        kind="preferences",
        columns=("context", "response1", "response2", "overall_preference"),
        names={"prompt": "context", "a": "response1", "b": "response2",
               "better": _better("overall_preference", **_STRENGTHS)},
        read=read_choice,
        prompt_columns=("context",),
    ),
    RowFormat(
        name="helpsteer2_preference",
        kind="preferences",
        columns=("prompt", "response_1", "response_2", "preference_strength"),
        names={"a": "response_1", "b": "response_2",
               "better": _better("preference_strength", **_STRENGTHS)},
        read=read_helpsteer_choice,
        reads_prompt=True,
    ),
    RowFormat(
        name="webgpt",
        kind="preferences",
        columns=("question", "answer_0", "answer_1", "score_0", "score_1"),
        names={"prompt": "question.full_text", "a": "answer_0", "b": "answer_1",
               "score_a": "score_0", "score_b": "score_1"},
        read=read_scored_choice,
        prompt_columns=("question",),
    ),
    RowFormat(
        name="summarize_feedback",
        kind="preferences",
        columns=("info", "summaries", "choice"),
        names={"a": "summaries.0.text", "b": "summaries.1.text",
               "better": _better("choice", a=0, b=1)},
        read=read_summaries,
        prompt_columns=("info",),
    ),
    RowFormat(
        name="arena",
        kind="preferences",
        columns=("conversation_a", "conversation_b", "winner"),
        names={"a": "conversation_a", "b": "conversation_b", "better": _better("winner",
               a="model_a", b="model_b", tie=["tie", "tie (bothbad)", "bothbad", "both_bad"])},
        read=read_choice,
        prompt_columns=(),
    ),
    RowFormat(
        name="arena_lists",
        kind="preferences",
        columns=("prompt", "response_a", "response_b", *(f"winner_{name}" for name in _WINNERS)),
        fits=_are_listed,
        read=read_listed_choice,
        reads_prompt=True,
    ),
    RowFormat(
        name="alpaca_farm",
        kind="preferences",
        columns=("instruction", "output_1", "output_2", "preference"),
        names={"a": "output_1", "b": "output_2"},
        read=read_graded_choice,
        prompt_columns=_ALPACA,
    ),
    RowFormat(
        name="llmbar",
        kind="preferences",
        columns=("input", "output_1", "output_2", "label"),
        names={"prompt": "input", "a": "output_1", "b": "output_2",
               "better": _better("label", a=1, b=2)},
        read=read_choice,
        prompt_columns=("input",),
    ),
    RowFormat(
        name="pandalm",
        kind="preferences",
        columns=("instruction", "response1", "response2", "annotator1"),
        names={"a": "response1", "b": "response2", "better": _better(
               ["annotator1", "annotator2", "annotator3"], a=1, b=2, tie=0)},
        read=read_choice,
        prompt_columns=_ALPACA,
    ),
    # The same, as data.columns names them.
    RowFormat(
        name="choice",
        kind="preferences",
        columns=("a", "b", "better"),
        read=read_choice,
        prompt_columns=("prompt", *_ALPACA),
    ),
    RowFormat(
        name="scored_choice",
        kind="preferences",
        columns=("a", "b", "score_a", "score_b"),
        read=read_scored_choice,
        prompt_columns=("prompt", *_ALPACA),
    ),
)  # fmt: skip
