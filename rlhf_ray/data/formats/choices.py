"""Pairs whose better side is named by a label or by two scores, in the forms that are published.

Each form is what `columns` of the configuration would say, so a data set that is not among them is
read by writing that line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rlhf_ray.config.data import BetterConfig
from rlhf_ray.data.errors import RowError, UnusableRow, short
from rlhf_ray.data.formats import fields
from rlhf_ray.data.formats.example_formats import ALPACA
from rlhf_ray.data.formats.helpsteer import with_turns
from rlhf_ray.data.formats.pairs import (
    read_alpaca_pairs,
    read_implicit_prompt,
    read_preference,
)
from rlhf_ray.data.formats.row_format import RowFormat
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.data.json_values import unfolded
from rlhf_ray.data.row import Row

_STRENGTHS = {"a": [-3, -2, -1], "b": [1, 2, 3], "tie": 0}


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
    info = unfolded(fields.column(row, "info"))
    if not isinstance(info, dict):
        detail = f"column 'info' must be an object with `post` or `article`, got {short(info)}"
        raise RowError(row.where, "wrong type", detail)
    said = {name: str(info.get(name) or "") for name in ("subreddit", "title", "post", "article")}
    if not (said["post"] or said["article"]).strip():
        raise UnusableRow(row.where, "empty prompt", "`info` has neither `post` nor `article`")
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
        name = row.called("preference")
        detail = f"column {name!r} must be from 1 to 2, or 0 for a tie, got {preference:g}"
        raise RowError(row.where, "unknown label", detail)
    better = "tie" if preference in (0, 1.5) else "a" if preference < 1.5 else "b"
    yield from read_choice(replace(row, columns={**row.columns, "better": better}))


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
    called = {"chosen": row.called(better), "rejected": row.called(worse)}
    pair = replace(row, columns=columns, names={**row.names, **called})
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
        fits=lambda columns: isinstance(unfolded(columns["question"]), dict),
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
        name="alpaca_farm",
        kind="preferences",
        columns=("instruction", "output_1", "output_2", "preference"),
        names={"a": "output_1", "b": "output_2"},
        read=read_graded_choice,
        prompt_columns=ALPACA,
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
        prompt_columns=ALPACA,
    ),
    # The same, as data.columns names them.
    RowFormat(
        name="choice",
        kind="preferences",
        columns=("a", "b", "better"),
        read=read_choice,
        prompt_columns=("prompt", *ALPACA),
    ),
    RowFormat(
        name="scored_choice",
        kind="preferences",
        columns=("a", "b", "score_a", "score_b"),
        read=read_scored_choice,
        prompt_columns=("prompt", *ALPACA),
    ),
)  # fmt: skip
