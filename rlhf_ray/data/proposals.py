"""The line to write so that rows that are not recognised are: `data.columns: {prompt: question}`.

What is proposed is what people will write, so a column that would train something else than is
meant is worse than none: ids, names of models and one of several answers are never proposed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from rlhf_ray.data.fields import is_truth
from rlhf_ray.data.nearest import (
    NAME_CHARACTERS,
    distance,
    is_chat,
    named_values,
    nearest,
    quoted,
    words,
)
from rlhf_ray.data.parsed_rows import Columns

_CHAT_COLUMNS = ("prompt", "chosen", "rejected", "completion")
_MOST_SIDES = 12  # columns of which two may be the answers
_BY_A_WORD = 2.0  # from here on a name is near by one of its words alone
_ABOUT = {
    "id", "ids", "uid", "uuid", "hash", "sha256", "idx", "index", "name", "type", "kind", "tag",
    "tags", "category", "format", "model", "source", "origin", "language", "lang", "url", "date",
    "time", "timestamp", "path", "file", "len", "length", "count", "num", "level", "version",
    "split", "subset", "dataset", "domain", "topic", "task", "author", "annotator", "generator",
}  # fmt: skip
# Beginnings of names that are no part of what is asked and answered.
_BESIDE = ("system", "meta")
# What a layout takes along where it is there.
_OPTIONAL: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("instruction", "output"): ("input",),
    ("instruction",): ("input",),
}


def line_for(layouts: Sequence[Sequence[str]], columns: Columns) -> str:
    """What to write so that a row has one of these layouts.

    Args:
        layouts: Names of columns that a job can take together.
        columns: The row's.

    Returns:
        The line, or an empty text where no layout comes out of the row's columns.
    """
    # A text is trained as a whole: only where nothing says what was asked and answered.
    asked = [layout for layout in layouts if tuple(layout) != ("text",)]
    found = [each for layout in asked if (each := _assigned(layout, columns)) is not None]
    if not found and len(asked) < len(layouts):
        found = [each for each in [_assigned_text(columns)] if each is not None]
    if found:
        _, names = min(found, key=lambda each: each[0])
        renamed = [f"{ours}: {quoted(theirs)}" for ours, theirs in names.items() if ours != theirs]
        return f"data.columns: {{{', '.join(renamed)}}}" if renamed else ""
    return _line_for_sides(columns) if any("chosen" in layout for layout in layouts) else ""


def _assigned(layout: Sequence[str], columns: Columns) -> tuple[float, dict[str, str]] | None:
    """A column for every name of a layout, and how far they lie from it altogether."""
    names: dict[str, str] = {name: name for name in layout if name in columns}
    total = 0.0
    for wanted in layout:
        if wanted in names:
            continue
        if (near := _nearest_column(wanted, columns, names.values())) is not None:
            far, names[wanted] = near
            total += far
    missing = [wanted for wanted in layout if wanted not in names]
    if missing == ["prompt"] and (asked := _only_text(columns, names.values())):
        names["prompt"] = asked
    elif missing:
        return None
    assigned = {wanted: names[wanted] for wanted in layout}
    for wanted in _OPTIONAL.get(tuple(layout), ()):
        near = _nearest_column(wanted, columns, assigned.values())
        if wanted not in columns and near is not None and near[0] < _BY_A_WORD:
            assigned[wanted] = near[1]
    return total / len(layout), assigned


def _assigned_text(columns: Columns) -> tuple[float, dict[str, str]] | None:
    """A column with texts, where none beside it says what was asked."""
    near = _nearest_column("text", columns, ())
    if near is None or _nearest_column("prompt", columns, [near[1]]) is not None:
        return None
    return near[0], {"text": near[1]}


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
        far = _distance(wanted, name, value)
        if far and (far < _BY_A_WORD or _says_something(name)):
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
        and _says_something(name)
    ]
    is_meant = len(others) == 1 and not distance("completion", others[0])
    return others[0] if is_meant else None


def _line_for_sides(columns: Columns) -> str:
    """Two answers of like names, and what may say which is better: two numbers, or some label."""
    answers = {
        name: value
        for name, value in columns.items()
        if _holds("chosen", value) and _says_something(_ends(name) or name)
    }
    numbers = {name: value for name, value in columns.items() if isinstance(value, int | float)}
    sides, scores = _like_names(answers), _like_names(numbers)
    if sides is None:
        return ""
    has_prompt = "prompt" in columns or "instruction" in columns
    prompt = None if has_prompt else nearest("prompt", answers)
    names = {**({"prompt": prompt} if prompt else {}), "a": sides[0], "b": sides[1]}
    if scores is not None:
        names |= {"score_a": scores[0], "score_b": scores[1]}
    line = ", ".join(f"{ours}: {quoted(theirs)}" for ours, theirs in names.items())
    label = "" if scores else ", better: {column: LABEL, a: ..., b: ...}"
    return f"data.columns: {{{line}{label}}}"


def _like_names(columns: Columns) -> tuple[str, str] | None:
    """The first two columns whose names are alike but for their end."""
    for one, other in itertools.combinations(list(columns)[:_MOST_SIDES], 2):
        if _ends(one) and _ends(one) == _ends(other):
            return one, other
    return None


def _has_like(name: str, columns: Columns) -> bool:
    """Whether there are more columns of this name but for its end: several answers."""
    stem = _ends(name)
    return bool(stem) and any(other != name and _ends(other) == stem for other in columns)


def _ends(name: str) -> str | None:
    """A name without the letter or digit that tells two answers apart."""
    if len(name) > NAME_CHARACTERS:
        return None
    match = re.fullmatch(r"(.*?)[_ ]?(a|b|A|B|\d|left|right)", name)
    return match[1] if match else None


def _says_something(name: str) -> bool:
    """Whether a column is part of what is asked and answered, by its name."""
    parts = words(name)
    return parts[-1] not in _ABOUT and parts[0] not in _BESIDE


def _holds(wanted: str, value: Any) -> bool:
    """Whether a column can be the wanted one, by what is in it."""
    chat = is_chat(value)
    kinds: Mapping[str, Callable[[], bool]] = {
        "messages": lambda: chat,
        "answers": lambda: isinstance(value, list),
        "scores": lambda: isinstance(value, list),
        "label": lambda: is_truth(value) and not isinstance(value, float),
        "text": lambda: isinstance(value, str),
        "prompt": lambda: isinstance(value, str) or (chat and not _ends_answered(value)),
    }
    if wanted in kinds:
        return kinds[wanted]()
    return isinstance(value, str) or (chat and wanted in _CHAT_COLUMNS)


def _ends_answered(chat: Sequence[Any]) -> bool:
    """Whether a chat ends with the assistant's turn: the prompt is what stands before that."""
    last = chat[-1] if isinstance(chat[-1], dict) else {}
    return len(chat) > 1 and last.get("role", last.get("from")) in ("assistant", "gpt", "model")
