"""Advice on rows that are not recognised: what there is, what is needed, what to write.

What is proposed is what people will write, so a column that would train something else than is
meant is worse than none: ids, names of models and one of several answers are never proposed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from rlhf_ray.config.data import plain_label
from rlhf_ray.data.formats.fields import is_truth
from rlhf_ray.data.formats.row_format import Kind
from rlhf_ray.data.json_values import glimpsed
from rlhf_ray.data.messages import ASSISTANTS, is_written_chat
from rlhf_ray.data.nearest import (
    NAME_CHARACTERS,
    distance,
    is_about,
    is_chat,
    listed,
    named_values,
    nearest,
    quoted,
    side_of,
    words,
)
from rlhf_ray.data.row import Columns, Row

# What the plainest formats of a kind are made of: what an error says that a job needs.
_NEEDED: Mapping[Kind, tuple[tuple[str, ...], ...]] = {
    "examples": (("prompt", "completion"), ("instruction", "output"), ("messages",)),
    "texts": (("text",),),
    "labels": (("prompt", "completion", "label"), ("messages", "label")),
    "preferences": (("prompt", "chosen", "rejected"), ("prompt", "answers", "scores")),
    "prompts": (("prompt",), ("messages",), ("instruction",)),
}
# Others that may come out of a row's columns.
_FURTHER: Mapping[Kind, tuple[tuple[str, ...], ...]] = {
    "preferences": (("prompt", "answers", "ranks"), ("instruction", "chosen", "rejected"))
}
_TEXT = ("text",)
_CHAT_COLUMNS = ("prompt", "chosen", "rejected", "completion")
# Labels of two sides and of neither, as data sets write them.
_LABELS = (
    ("model_a", "model_b", ("tie", "tie (bothbad)", "both_bad")),
    ("a", "b", ("tie", "both", "neither", "c")),
    ("left", "right", ("tie", "both", "neither")),
    ("first", "second", ("tie", "both", "neither")),
)
_MOST_SIDES = 12  # columns of which two may be the answers
_BY_A_WORD = 2.0  # from here on a name is near by one of its words alone
# How far a name lies that tells nothing: beside others that were found, and alone.
_LEFT_OVER, _ALONE = 0.9, 4.0


def advice(row: Row, kinds: Collection[Kind], what: str) -> str:
    """What columns an unknown row has, what a job of these kinds needs, and the line to write."""
    columns = row.columns
    if "input_ids" in columns:
        return "tokens (input_ids) are not read: give the texts or chats that they were made of"
    if "role" in columns and isinstance(columns.get("text", columns.get("content")), str):
        return (
            "each row is one message of a conversation: put those of one conversation into a list, "
            "in a column messages, or in OpenAssistant's form, with message_tree_id and parent_id"
        )
    # A prompt is all that a job of prompts needs of any of them.
    wanted = ("prompts",) if "prompts" in kinds else kinds
    needed = [layout for kind in _NEEDED if kind in wanted for layout in _NEEDED[kind]]
    layouts = needed + [layout for kind in _FURTHER if kind in wanted for layout in _FURTHER[kind]]
    there = f"there are {listed(row.found, needed[0][0])}; {what} need " + " or ".join(
        " + ".join(layout) for layout in needed
    )
    names = _names_for(layouts, columns, with_sides="preferences" in kinds)
    if names:
        return f"{there}: set {_line(row, names)}{_warning(row, kinds, names)}"
    if "preferences" in kinds and all(
        isinstance(columns.get(side), str) for side in ("chosen", "rejected")
    ):
        return (
            f"{there}: name the prompt by data.columns, or set data.format: common_beginning, "
            "which takes the words that both answers begin with as the prompt"
        )
    missing = {name: "..." for name in needed[0] if name not in columns}
    return f"{there}: name them by {_line(row, missing)}"


def _line(row: Row, names: Mapping[str, str]) -> str:
    """`data.columns` with what the configuration names already, by the names of the file."""
    kept = {ours: theirs for ours, theirs in row.names.items() if ours not in names.values()}
    pairs = {ours: quoted(theirs) for ours, theirs in kept.items()}
    for ours, theirs in names.items():
        is_name = theirs != "..." and not theirs.startswith("{")
        pairs[ours] = quoted(row.called(theirs)) if is_name else theirs
    shown = ", ".join(f"{ours}: {theirs}" for ours, theirs in pairs.items() if ours != theirs)
    return f"data.columns: {{{shown}}}"


def _warning(row: Row, kinds: Collection[Kind], names: Mapping[str, str]) -> str:
    """That a column judges answers, of a job that would train all of them."""
    if "examples" not in kinds or {"labels", "prompts"} & set(kinds) or "a" in names:
        return ""
    truths = {name: value for name, value in row.columns.items() if value in (0, 1)}
    judge = nearest("label", truths)
    if judge is None:
        return ""
    return f"; {row.called(judge)!r} says which answers are good, and all would be trained"


def _names_for(
    layouts: Sequence[Sequence[str]], columns: Columns, *, with_sides: bool
) -> dict[str, str]:
    """What to call the columns so that the row has one of the layouts; empty where none comes out.

    With `with_sides`, two answers and what says which is better will do as well.

    Returns:
        Theirs by ours; of `better`, its labels in braces.
    """
    sides = _sides(columns)
    found: list[tuple[float, dict[str, str]]] = []
    for layout in layouts:
        # Columns that are there all the same do not hold what they are called. And a text is
        # trained as a whole: only where nothing says what was asked and answered.
        if set(layout) <= columns.keys() or tuple(layout) == _TEXT:
            continue
        found += _assigned(layout, columns, sides or ())
    if not found and with_sides:
        if sides is not None:
            return _names_of_sides(sides, columns)
        found = [*_assigned(("chosen", "rejected"), columns, ())]
    if not found and _TEXT in map(tuple, layouts):
        found = [*_assigned_text(columns)]
    if not found:
        return {}
    _, names = min(found, key=lambda each: each[0])
    return {ours: theirs for ours, theirs in names.items() if ours != theirs}


def _assigned(
    layout: Sequence[str], columns: Columns, without: Collection[str]
) -> Iterator[tuple[float, dict[str, str]]]:
    """A column for every name of a layout, and how far they lie from it altogether, if there is."""
    names: dict[str, str] = {name: name for name in layout if name in columns}
    total = 0.0
    for wanted in layout:
        if wanted in names:
            continue
        taken = (*names.values(), *without)
        if (near := _nearest_column(wanted, columns, taken)) is not None:
            far, names[wanted] = near
            total += far
    missing = [wanted for wanted in layout if wanted not in names]
    if missing == ["prompt"] and (asked := _only_text(columns, names.values())):
        names["prompt"] = asked
        total += _LEFT_OVER if total else _ALONE
    elif missing:
        return
    assigned = {wanted: names[wanted] for wanted in layout}
    if "instruction" in layout and "input" not in columns:  # taken along where it is there
        near = _nearest_column("input", columns, assigned.values())
        if near is not None and near[0] < _BY_A_WORD:
            assigned["input"] = near[1]
    yield total / len(layout), assigned


def _assigned_text(columns: Columns) -> Iterator[tuple[float, dict[str, str]]]:
    """A column with texts, where none beside it says what was asked."""
    near = _nearest_column("text", columns, ())
    if near is not None and _nearest_column("prompt", columns, [near[1]]) is None:
        yield near[0], {"text": near[1]}


def _nearest_column(
    wanted: str, columns: Columns, taken: Collection[str]
) -> tuple[float, str] | None:
    """The column nearest to a name, and how far it lies; None where none is near."""
    near = []
    for name, value in named_values(columns):
        if name in taken or not _holds(wanted, value):
            continue
        if name.rpartition(".")[2].isdigit() and wanted != "prompt":
            continue  # the first of a list may be what was asked, and is no answer for all of them
        if wanted in ("completion", "output") and _has_like(name, columns):
            continue
        if far := _distance(wanted, name, value):
            near.append((far, name))
    return min(near) if near else None


def _distance(wanted: str, name: str, value: Any) -> float:
    """The same of names alone, but that a chat which is called one is as good as the best."""
    is_called_chat = words(name)[-1] in ("messages", "conversation", "conversations")
    if wanted == "prompt" and is_chat(value) and is_called_chat:
        return 1 + 0.1 * name.count(".")
    return distance(wanted, name)


def _only_text(columns: Columns, taken: Collection[str]) -> str | None:
    """The one column with words in it that is called nothing else."""
    others = [
        name
        for name, value in columns.items()
        if name not in taken
        and isinstance(value, str)
        and len(value.split()) > 1
        and len(name) <= NAME_CHARACTERS
        and not is_about(name)
    ]
    is_meant = len(others) == 1 and not distance("completion", others[0])
    return others[0] if is_meant else None


def _sides(columns: Columns) -> tuple[str, str] | None:
    """The first two texts or chats whose names are alike but for their end."""
    answers = [
        name for name, value in columns.items() if _holds("chosen", value) and not is_about(name)
    ]
    return _like_names(answers)


def _like_names(names: Sequence[str]) -> tuple[str, str] | None:
    for one, other in itertools.combinations(names[:_MOST_SIDES], 2):
        first, second = side_of(one), side_of(other)
        if first is not None and second is not None and first[0] == second[0]:
            return one, other
    return None


def _has_like(name: str, columns: Columns) -> bool:
    """Whether there are more columns of this name but for its end: several answers."""
    side = side_of(name)
    others = (side_of(other) for other in columns if other != name)
    return side is not None and any(other and other[0] == side[0] for other in others)


def _names_of_sides(sides: tuple[str, str], columns: Columns) -> dict[str, str]:
    """Two answers, and what says which of them is better: two numbers, or a label."""
    others = {name: value for name, value in columns.items() if name not in sides}
    names = dict(zip(("a", "b"), sides, strict=True))
    if not {"prompt", "instruction"} & columns.keys():
        asked = _nearest_column("prompt", others, ())
        names = {**({"prompt": asked[1]} if asked else {}), **names}
    numbers = [name for name, value in columns.items() if isinstance(value, int | float)]
    if (scores := _like_names(numbers)) is not None:
        return names | {"score_a": scores[0], "score_b": scores[1]}
    near = [
        (far, name)
        for name, value in others.items()
        if name not in names.values()
        and isinstance(value, bool | int | str)
        and (far := distance("better", name))
    ]
    if not near:
        return names | {"better": "{column: LABEL, a: ..., b: ...}"}
    label = min(near)[1]
    return names | {"better": f"{{column: {quoted(label)}, {_labels(columns[label], sides)}}}"}


def _labels(value: Any, sides: tuple[str, str]) -> str:
    """Which labels call which side better, as far as one of them and the sides' names tell."""
    label = plain_label(value)
    ends = [side[1].lower() for each in sides if (side := side_of(each)) is not None]
    if label in (plain_label(end) for end in ends) and ends[0].isdigit():
        return f"a: {ends[0]}, b: {ends[1]}"
    for one, other, ties in _LABELS:
        if label in (one, other, *ties) and isinstance(value, str):
            shown = (value.upper() == value and one.upper()) or one
            second = (value.upper() == value and other.upper()) or other
            tie = f", tie: {quoted(value)}" if label in ties else ""
            return f"a: {shown}, b: {second}{tie}"
    return "a: ..., b: ..."


def _holds(wanted: str, value: Any) -> bool:
    """Whether a column can be the wanted one, by what is in it."""
    inner = glimpsed(value)
    chat = is_chat(inner)
    is_list = isinstance(inner, list) and bool(inner)
    kinds: Mapping[str, Callable[[], bool]] = {
        "messages": lambda: chat,
        "answers": lambda: is_list,
        "scores": lambda: is_list,
        "ranks": lambda: is_list,
        "label": lambda: is_truth(value) and not isinstance(value, float),
        "text": lambda: isinstance(value, str) and not is_written_chat(value),
        "prompt": lambda: not _ends_answered(inner) if chat else isinstance(value, str),
    }
    if wanted in kinds:
        return kinds[wanted]()
    return isinstance(value, str) or (chat and wanted in _CHAT_COLUMNS)


def _ends_answered(chat: Sequence[Any]) -> bool:
    """Whether a chat ends with the assistant's turn: the prompt is what stands before that."""
    last = chat[-1] if isinstance(chat[-1], dict) else {}
    return len(chat) > 1 and last.get("role", last.get("from")) in ASSISTANTS
