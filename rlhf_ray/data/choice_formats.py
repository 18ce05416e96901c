"""Pairs whose better side is named by a label or by two scores, in the forms that are published.

Each form is what `columns` of the configuration would say, so a data set that is not among them is
read by writing that line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rlhf_ray.config.data import BetterConfig
from rlhf_ray.data import fields
from rlhf_ray.data.columns import resolved
from rlhf_ray.data.errors import RowError, UnusableRow, short
from rlhf_ray.data.files import Row
from rlhf_ray.data.helpsteer import with_turns
from rlhf_ray.data.json_cells import unfolded
from rlhf_ray.data.parsing import Columns
from rlhf_ray.data.preference_formats import (
    read_alpaca_pairs,
    read_implicit_prompt,
    read_preference,
)
from rlhf_ray.data.row_format import RowFormat
from rlhf_ray.data.samples import Sample

_ALPACA = ("instruction", "input", "system", "history")
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


def read_helpsteer_choice(row: Row) -> Iterator[Sample | RowError]:
    """The same as `read_choice`, with turns in the prompt as HelpSteer writes them."""
    yield from read_choice(with_turns(row))


def read_arena_texts(row: Row) -> Iterator[Sample | RowError]:
    """`prompt`, `response_a` and `response_b`, and the winner: as a label, or one of three flags.

    Each may be a list with a text a turn of the user's, or its JSON text. Without a winner the
    prompt is all that the row says.
    """
    sides = {"a": "response_a", "b": "response_b"}
    columns = row.columns | {side: fields.column(row, name) for side, name in sides.items()}
    names = {**row.names, **{side: row.called(name) for side, name in sides.items()}}
    if holds_turn_lists(row.columns, ("prompt", "response_a", "response_b")):
        asked = unfolded(columns.pop("prompt"))
        for side in ("a", "b"):
            columns[side] = _turns(asked, unfolded(columns[side]))
    better = _winner(row)
    pair = replace(row, columns={**columns, "better": better or "tie"}, names=names)
    for sample in read_choice(pair):
        yield sample if better or isinstance(sample, RowError) else replace(sample, answers_K=())


def holds_turn_lists(columns: Columns, names: Sequence[str]) -> bool:
    """Whether all of these columns are lists of as many texts, or the JSON text of such lists."""
    lists = [unfolded(columns.get(name)) for name in names]
    return len({len(each) for each in lists if _is_list_of_texts(each)}) == 1 and all(
        map(_is_list_of_texts, lists)
    )


def _is_list_of_texts(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(turn is None or isinstance(turn, str) for turn in value)


def _turns(asked: list[str | None], said: list[str | None]) -> list[dict[str, str]]:
    turns: list[dict[str, str]] = []
    for question, answer in zip(asked, said, strict=True):
        turns += [{"role": "user", "content": question or ""}]
        turns += [{"role": "assistant", "content": answer or ""}]
    return turns


def _winner(row: Row) -> str:
    """`a`, `b` or `tie`; empty where the row names no winner."""
    if "winner" in row.columns:
        return str(resolved(row.columns, {"better": _WINNER}, row.where)["better"])
    flags = [f"winner_{name}" for name in ("model_a", "model_b", "tie")]
    if not any(name in row.columns for name in flags):
        return ""
    won = [fields.truth(row, name) for name in flags]
    if sum(won) != 1:
        detail = f"one of {', '.join(flags)} must be 1, and the others 0, got {won}"
        raise RowError(row.where, "unknown label", detail)
    return ("a", "b", "tie")[won.index(True)]


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


_WINNER = _better(
    "winner", a="model_a", b="model_b", tie=["tie", "tie (bothbad)", "bothbad", "both_bad"]
)

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
        name="arena",
        kind="preferences",
        columns=("conversation_a", "conversation_b", "winner"),
        names={"a": "conversation_a", "b": "conversation_b", "better": _WINNER},
        read=read_choice,
        prompt_columns=(),
    ),
    RowFormat(
        name="arena_texts",
        kind="preferences",
        columns=("prompt", "response_a", "response_b"),
        fits=lambda columns: (
            bool({"winner", "winner_model_a"} & columns.keys())
            or holds_turn_lists(columns, ("prompt", "response_a", "response_b"))
        ),
        read=read_arena_texts,
        reads_prompt=True,
    ),
    RowFormat(
        name="alpaca_farm",
        kind="preferences",
        columns=("instruction", "output_1", "output_2", "preference"),
        names={"a": "output_1", "b": "output_2", "better": _better("preference", a=1, b=2)},
        read=read_choice,
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
