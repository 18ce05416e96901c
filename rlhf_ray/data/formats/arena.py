"""Row formats of arenas: two models' answers to one user, and which model won."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

from rlhf_ray.config.data import BetterConfig
from rlhf_ray.data.columns import resolved
from rlhf_ray.data.errors import RowError, short
from rlhf_ray.data.formats import fields
from rlhf_ray.data.formats.choices import read_choice
from rlhf_ray.data.formats.row_format import RowFormat
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.data.json_values import unfolded
from rlhf_ray.data.messages import Messages, is_written_chat
from rlhf_ray.data.row import Columns, Row

_TEXTS = ("prompt", "response_a", "response_b")
_SIDES = {"a": "response_a", "b": "response_b"}
_WINNER = BetterConfig(
    column="winner", a="model_a", b="model_b", tie=["tie", "tie (bothbad)", "bothbad", "both_bad"]
)
_FLAGS = {"winner_model_a": "a", "winner_model_b": "b", "winner_tie": "tie"}


def read_arena_texts(row: Row) -> Iterator[Sample | RowError]:
    """`prompt`, `response_a` and `response_b`, and the winner: as a label, or one of three flags.

    Each may be a list with a text a turn of the user's, or its JSON text. Without a winner the
    prompt is all that the row says.
    """
    columns = row.columns | {side: fields.column(row, name) for side, name in _SIDES.items()}
    names = {**row.names, **{side: row.called(name) for side, name in _SIDES.items()}}
    if _has_lists(row.columns):
        del columns["prompt"]
        columns |= _chats(row)
    better = _winner(row)
    pair = replace(row, columns={**columns, "better": better or "tie"}, names=names)
    for sample in read_choice(pair):
        yield sample if better or isinstance(sample, RowError) else replace(sample, answers_K=())


def hold_turn_lists(columns: Columns, names: Sequence[str] = _TEXTS) -> bool:
    """Whether all of these columns are lists of as many texts, or the JSON text of such lists."""
    lists = [unfolded(columns.get(name)) for name in names]
    return all(map(_is_list_of_texts, lists)) and len({len(turns) for turns in lists}) == 1


def _is_list_of_texts(value: Any) -> TypeGuard[list[str | None]]:
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(turn is None or isinstance(turn, str) for turn in value)


def _has_lists(columns: Columns) -> bool:
    """Whether a row has lists of turns, well formed or not; an answer alone may be a text in JSON.

    A prompt that begins like a list is a broken one where an answer is one.
    """
    prompt = columns.get("prompt")
    if _is_list_of_texts(unfolded(prompt)):
        return True
    is_broken = isinstance(prompt, str) and prompt.startswith("[") and not is_written_chat(prompt)
    return is_broken and any(_is_list_of_texts(unfolded(columns[name])) for name in _TEXTS[1:])


def _chats(row: Row) -> dict[str, Messages]:
    """Both conversations, by side; what is null in the lists was left empty.

    Raises:
        RowError: A column is no such list, or they have not as many turns.
    """
    asked, *said = (_listed_texts(row, name) for name in _TEXTS)
    if {len(texts) for texts in said} != {len(asked)}:
        prompt = row.called(_TEXTS[0])
        detail = f"{len(asked)} turns in {prompt!r}, {len(said[0])} and {len(said[1])} in answers"
        raise RowError(row.where, "wrong number of turns", detail)
    return {
        side: [
            {"role": role, "content": text}
            for turn in zip(asked, answers, strict=True)
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        for side, answers in zip(_SIDES, said, strict=True)
    }


def _listed_texts(row: Row, name: str) -> list[str]:
    value = fields.column(row, name)
    turns = unfolded(value)
    if not _is_list_of_texts(turns):
        wanted = f"column {row.called(name)!r} must be a list of texts, as the others are, or its"
        raise RowError(row.where, "wrong type", f"{wanted} JSON text, got {short(value)}")
    return [fields.checked_text(row, name, turn or "") for turn in turns]


def _winner(row: Row) -> str:
    """`a`, `b` or `tie`; empty where the row names no winner."""
    if "winner" in row.columns:
        return str(resolved(row.columns, {"better": _WINNER}, row.where)["better"])
    if not _FLAGS.keys() & row.columns.keys():
        return ""
    won = [side for name, side in _FLAGS.items() if fields.truth(row, name)]
    if len(won) != 1:
        detail = f"one of {', '.join(_FLAGS)} must be 1, and the others 0, got {len(won)} of them"
        raise RowError(row.where, "unknown label", detail)
    return won[0]


ARENA_FORMATS = (
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
        columns=_TEXTS,
        fits=lambda columns: bool({"winner", *_FLAGS} & columns.keys()) or hold_turn_lists(columns),
        read=read_arena_texts,
        reads_prompt=True,
    ),
)
