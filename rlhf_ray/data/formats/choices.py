"""Pairs whose better side is named by a label, a grade or two scores: made plain pairs of.

Each form that is published is what `columns` of the configuration would say, so a data set that is
not among them is read by writing that line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlhf_ray.config.data import BetterConfig
from rlhf_ray.data.columns import resolved
from rlhf_ray.data.formats import fields
from rlhf_ray.data.json_values import Messages, is_list_of, unfolded
from rlhf_ray.data.messages import is_written_chat
from rlhf_ray.data.row import Columns, Row
from rlhf_ray.errors import RowError, UnusableRow, short

ARENA_TEXTS = ("prompt", "response_a", "response_b")
ARENA_WINNER = BetterConfig(
    column="winner", a="model_a", b="model_b", tie=["tie", "tie (bothbad)", "bothbad", "both_bad"]
)
ARENA_FLAGS = {"winner_model_a": "a", "winner_model_b": "b", "winner_tie": "tie"}


def by_label(row: Row) -> Row:
    """`a` and `b`, and which of them is `better`: `a`, `b` or `tie`."""
    match fields.column(row, "better"):
        case "a" | "b" as better:
            return _ordered(row, better)
        case "tie":
            return _ordered(row, "a", scores=(0, 0))
        case other:
            detail = f"column 'better' must say a, b or tie, got {short(other)}"
            raise RowError(row.where, "unknown label", detail)


def by_scores(row: Row) -> Row:
    """`a` and `b` with `score_a` and `score_b`; the higher is better, equal ones are a tie."""
    score_a, score_b = fields.number(row, "score_a"), fields.number(row, "score_b")
    if score_a >= score_b:
        return _ordered(row, "a", scores=(score_a, score_b))
    return _ordered(row, "b", scores=(score_b, score_a))


def by_grade(row: Row) -> Row:
    """`a` and `b`, and a `preference` from 1, which is for `a`, to 2, which is for `b`.

    AlpacaEval's annotators say in between how sure they are; 1.5 is a tie, as 0 is.
    """
    preference = fields.number(row, "preference")
    if preference != 0 and not 1 <= preference <= 2:
        name = row.called("preference")
        detail = f"column {name!r} must be from 1 to 2, or 0 for a tie, got {preference:g}"
        raise RowError(row.where, "unknown label", detail)
    better = "tie" if preference in (0, 1.5) else "a" if preference < 1.5 else "b"
    return by_label(_with(row, better=better))


def of_summaries(row: Row) -> Row:
    """Two summaries of a Reddit post or a news article (arXiv 2009.01325, appendix B.5).

    The prompt is the query of that paper, behind which the summaries' own space belongs.
    """
    info = unfolded(fields.column(row, "info"))
    if not isinstance(info, dict):
        detail = f"column 'info' must be an object with `post` or `article`, got {short(info)}"
        raise RowError(row.where, "wrong type", detail)
    subreddit, title, post, article = (
        str(info.get(name) or "") for name in ("subreddit", "title", "post", "article")
    )
    if not (post or article).strip():
        raise UnusableRow(row.where, "empty prompt", "`info` has neither `post` nor `article`")
    query = f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}" if post else article
    return by_label(_with(row, prompt=f"{query}\n\nTL;DR:"))


def of_arena_texts(row: Row) -> Row:
    """`prompt`, `response_a` and `response_b`, and the winner: as a label, or one of three flags.

    Each may be a list with a text a turn of the user's, or its JSON text. Without a winner `winner`
    is empty then: the prompt is all that the row says.
    """
    sides = {side: f"response_{side}" for side in "ab"}
    columns = row.columns | {side: fields.column(row, name) for side, name in sides.items()}
    names = {**row.names, **{side: row.called(name) for side, name in sides.items()}}
    if _has_lists(row.columns):
        del columns["prompt"]
        columns |= _chats(row)
    winner = _winner(row)
    columns |= {"better": winner or "tie", "winner": winner}
    return by_label(replace(row, columns=columns, names=names))


def hold_turn_lists(columns: Columns, names: Sequence[str] = ARENA_TEXTS) -> bool:
    """Whether all of these columns are lists of as many texts, or the JSON text of such lists."""
    lists = [unfolded(columns.get(name)) for name in names]
    return all(map(_is_list_of_texts, lists)) and len({len(turns) for turns in lists}) == 1


def _ordered(row: Row, better: str, *, scores: tuple[float, float] | None = None) -> Row:
    """The row with the better answer as `chosen`."""
    sides = {"chosen": better, "rejected": "b" if better == "a" else "a"}
    columns = {side: fields.column(row, theirs) for side, theirs in sides.items()}
    for side, score in zip(sides, scores or (None, None), strict=True):
        columns[f"score_{side}"] = score
    names = {side: row.called(theirs) for side, theirs in sides.items()}
    return _with(replace(row, names={**row.names, **names}), **columns)


def _with(row: Row, **columns: Any) -> Row:
    return replace(row, columns={**row.columns, **columns})


def _is_list_of_texts(value: Any) -> bool:
    return is_list_of(value, lambda turn: turn is None or isinstance(turn, str))


def _has_lists(columns: Columns) -> bool:
    """Whether a row has lists of turns, well formed or not; an answer alone may be a text in JSON.

    A prompt that begins like a list is a broken one where an answer is one.
    """
    prompt = columns.get("prompt")
    if _is_list_of_texts(prompt):
        return True
    is_broken = isinstance(prompt, str) and prompt.startswith("[") and not is_written_chat(prompt)
    return is_broken and any(_is_list_of_texts(columns[name]) for name in ARENA_TEXTS[1:])


def _chats(row: Row) -> Mapping[str, Messages]:
    """Both conversations, by side; what is null in the lists was left empty."""
    asked, *answered = (_listed_texts(row, name) for name in ARENA_TEXTS)
    if {len(texts) for texts in answered} != {len(asked)}:
        lengths = f"{len(answered[0])} and {len(answered[1])} in answers"
        detail = f"{len(asked)} turns in {row.called('prompt')!r}, {lengths}"
        raise RowError(row.where, "wrong number of turns", detail)
    return {
        side: [
            {"role": role, "content": text}
            for turn in zip(asked, answers, strict=True)
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        for side, answers in zip("ab", answered, strict=True)
    }


def _listed_texts(row: Row, name: str) -> list[str]:
    value = fields.column(row, name)
    if not _is_list_of_texts(value):
        wanted = f"column {row.called(name)!r} must be a list of texts, as the others are, or its"
        raise RowError(row.where, "wrong type", f"{wanted} JSON text, got {short(value)}")
    return [fields.checked_text(row, name, turn or "") for turn in unfolded(value)]


def _winner(row: Row) -> str:
    """`a`, `b` or `tie`; empty where the row names no winner."""
    if "winner" in row.columns:
        return str(resolved(row.columns, {"better": ARENA_WINNER}, row.where)["better"])
    if not ARENA_FLAGS.keys() & row.columns.keys():
        return ""
    won = [side for name, side in ARENA_FLAGS.items() if fields.truth(row, name)]
    if len(won) != 1:
        names = ", ".join(ARENA_FLAGS)
        detail = f"one of {names} must be 1, and the others 0, got {len(won)} of them"
        raise RowError(row.where, "unknown label", detail)
    return won[0]
