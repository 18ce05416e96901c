"""The line to write for rows that are not recognised: what their columns are called here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from rlhf_ray.config.data import plain_label
from rlhf_ray.data.files import Row
from rlhf_ray.data.json_cells import glimpsed
from rlhf_ray.data.messages import is_written_chat
from rlhf_ray.data.nearest import NAME_CHARACTERS, distance, few, is_about, listed, quoted, side_of
from rlhf_ray.data.parsing import Columns
from rlhf_ray.data.row_format import Kind

# What the plainest formats of a kind are made of: what an error says that a job needs.
_NEEDED: Mapping[Kind, tuple[tuple[str, ...], ...]] = {
    "examples": (("prompt", "completion"), ("messages",)),
    "texts": (("text",),),
    "labels": (("prompt", "completion", "label"), ("messages", "label")),
    "preferences": (("prompt", "chosen", "rejected"), ("prompt", "answers", "scores")),
    "prompts": (("prompt",),),
}
# Others that may come out of a row's columns.
_FURTHER: Mapping[Kind, tuple[tuple[str, ...], ...]] = {
    "examples": (("instruction", "input", "output"), ("conversations",)),
    "preferences": (("prompt", "answers", "ranks"), ("instruction", "input", "chosen", "rejected")),
}
_CHAT_COLUMNS = ("prompt", "chosen", "rejected", "completion")
# Labels of two sides and of neither, as data sets write them.
_LABELS = (
    ("model_a", "model_b", ("tie", "tie (bothbad)", "both_bad")),
    ("a", "b", ("tie", "both", "neither", "c")),
    ("left", "right", ("tie", "both", "neither")),
    ("first", "second", ("tie", "both", "neither")),
)
# How far a name lies that tells nothing: beside others that were found, and alone.
_LEFT_OVER, _ALONE = 0.9, 4.0
_MOST_SIDES = 12  # columns that are looked at for two answers of like names


def advice(row: Row, kinds: Collection[Kind], what: str) -> str:
    """What columns there are, what a job needs, and the line to write.

    Args:
        row: One that is not recognised.
        kinds: That the job takes.
        what: The job takes, for the message.
    """
    needed = [layout for kind in _NEEDED if kind in kinds for layout in _NEEDED[kind]]
    layouts = needed + [layout for kind in _FURTHER if kind in kinds for layout in _FURTHER[kind]]
    if "prompts" in kinds:  # a prompt is all that such a job needs of any of them
        needed = [("prompt",)]
        further = ("messages",), *_FURTHER["examples"]
        layouts = [("prompt",), *further]
    there = f"there are {listed(row.found, needed[0][0])}; {what} need " + " or ".join(
        " + ".join(layout) for layout in needed
    )
    names = _names_for(layouts, row.columns, with_sides="preferences" in kinds)
    if names:
        return f"{there}: set {_line(row, names)}"
    if "preferences" in kinds and all(
        isinstance(row.columns.get(side), str) for side in ("chosen", "rejected")
    ):
        return (
            f"{there}: name the prompt by data.columns, or set data.format: common_beginning, "
            "which takes the words that both answers begin with as the prompt"
        )
    missing = {name: "..." for name in needed[0] if name not in row.columns}
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


def _names_for(
    layouts: Sequence[Sequence[str]], columns: Columns, *, with_sides: bool
) -> dict[str, str]:
    """What to call the columns so that the row has one of the layouts; empty where none comes out.

    Args:
        layouts: Names that a job can take together, the likelier first.
        columns: The row's.
        with_sides: Whether two answers and what says which is better will do as well.
    """
    sides = _sides(columns)
    answers = {} if sides is None else dict.fromkeys(sides)
    found = [
        each
        for layout in layouts
        if not set(layout) <= columns.keys()  # such columns do not hold what they are called
        and (each := _assigned(layout, columns, answers)) is not None
    ]
    if sides is not None and with_sides:
        return _names_of_sides(sides, columns)
    if not found:
        pair = _assigned(("chosen", "rejected"), columns, answers) if with_sides else None
        found = [pair] if pair is not None else []
    if not found:
        return {}
    _, names = min(found, key=lambda each: each[0])
    return {ours: theirs for ours, theirs in names.items() if ours != theirs}


def _assigned(
    layout: Sequence[str], columns: Columns, without: Collection[str]
) -> tuple[float, dict[str, str]] | None:
    """A column for every name of a layout, and how far they lie from it altogether."""
    names: dict[str, str] = {name: name for name in layout if name in columns}
    total = 0.0
    for wanted in layout:
        if wanted in names:
            continue
        near = [
            (far, name)
            for name, value in few(columns)
            if name not in names.values()
            and name not in without
            and _holds(wanted, value)
            and (far := distance(wanted, name))
        ]
        if near:
            far, names[wanted] = min(near)
            total += far
    missing = [wanted for wanted in layout if wanted not in names]
    others = [
        name
        for name, value in columns.items()
        if name not in names.values() and isinstance(value, str) and len(name) <= NAME_CHARACTERS
        if not is_about(name)
    ]
    if len(missing) == len(others) == 1 and missing[0] == "prompt":
        names["prompt"] = others[0]
        total += _LEFT_OVER if total else _ALONE
    elif missing:
        return None
    return total / len(layout), {wanted: names[wanted] for wanted in layout}


def _sides(columns: Columns) -> tuple[str, str] | None:
    """The first two texts or chats whose names are alike but for their end."""
    answers = [
        name for name, value in columns.items() if _holds("chosen", value) and not is_about(name)
    ]
    return _like_names(answers[:_MOST_SIDES])


def _like_names(names: Sequence[str]) -> tuple[str, str] | None:
    for one, other in itertools.combinations(names, 2):
        first, second = side_of(one), side_of(other)
        if first is not None and second is not None and first[0] == second[0]:
            return one, other
    return None


def _names_of_sides(sides: tuple[str, str], columns: Columns) -> dict[str, str]:
    """Two answers, and what says which of them is better: two numbers, or a label."""
    texts = {n: value for n, value in columns.items() if n not in sides and _holds("chosen", value)}
    asked = "prompt" if "prompt" in columns else _nearest_of("prompt", texts)
    names = {"prompt": asked} if asked and asked != "prompt" else {}
    names |= {"a": sides[0], "b": sides[1]}
    numbers = [name for name, value in columns.items() if isinstance(value, int | float)]
    scores = _like_names(numbers[:_MOST_SIDES])
    if scores is not None:
        return names | {"score_a": scores[0], "score_b": scores[1]}
    others = {
        name: value
        for name, value in columns.items()
        if name not in (*sides, asked) and isinstance(value, bool | int | str)
    }
    label = _nearest_of("better", others)
    if label is None:
        return names | {"better": "{column: LABEL, a: ..., b: ...}"}
    return names | {"better": f"{{column: {quoted(label)}, {_labels(columns[label], sides)}}}"}


def _nearest_of(wanted: str, columns: Columns) -> str | None:
    near = [(far, name) for name in columns if (far := distance(wanted, name))]
    return min(near)[1] if near else None


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
    is_list = isinstance(inner, list) and bool(inner)
    is_chat = is_list and isinstance(inner[0], dict)
    is_talk = is_chat and bool({"role", "from"} & inner[0].keys())
    kinds: Mapping[str, Callable[[], bool]] = {
        "messages": lambda: is_talk,
        "conversations": lambda: is_list and all(isinstance(turn, str) for turn in inner),
        "answers": lambda: is_list,
        "scores": lambda: is_list,
        "ranks": lambda: is_list,
        "label": lambda: isinstance(value, bool | int | float | str),
        "text": lambda: isinstance(value, str) and not is_written_chat(value),
    }
    if wanted in kinds:
        return kinds[wanted]()
    return isinstance(value, str) or (is_chat and wanted in _CHAT_COLUMNS)
