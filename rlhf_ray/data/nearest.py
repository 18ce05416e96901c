"""Which column is meant: names that lie near a wanted one, and the line to write for them."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rlhf_ray.data.parsed_rows import Columns

_MOST_LISTED = 12  # names that an error lists
_NAME_CHARACTERS = 40  # of each of them, and of a name that may be meant
_MOST_FOUND = 200  # names that are looked at, of a row with thousands
_PLAIN = re.compile(r"[\w.-]+")
_DEEPEST = 3  # levels of a path
_SIMILAR = 0.75  # of difflib's ratio: "quesiton" for "question"
# What data sets call a column, the more usual first.
_ALSO_CALLED: Mapping[str, tuple[str, ...]] = {
    "prompt": (
        "question", "query", "instruction", "problem", "input", "context", "history", "post",
        "request", "trajectory",
    ),
    "completion": (
        "response", "answer", "output", "solution", "reply", "target", "result", "generation",
        "assistant", "summary",
    ),
    "chosen": (
        "preferred", "accepted", "winner", "positive", "good", "response_j", "best", "better",
        "win",
    ),
    "rejected": (
        "dispreferred", "nonpreferred", "loser", "negative", "bad", "response_k", "worst", "worse",
        "lose",
    ),
    "messages": ("conversations", "conversation", "dialogue", "dialog", "chat", "turns"),
    "text": ("content", "document", "body", "story", "passage", "article"),
    "label": (
        "desirable", "is_good", "thumbs_up", "thumbsup", "kto_tag", "is_safe", "is_correct",
        "correct", "preference", "feedback", "score",
    ),
    "answers": ("responses", "completions", "generations", "candidates", "outputs"),
    "scores": ("ratings", "rewards"),
    "answer": ("ground_truth", "solution", "target", "label", "final_answer", "reference",
               "expected", "gold"),
}  # fmt: skip
_CHAT_COLUMNS = ("prompt", "chosen", "rejected", "completion")


def listed(columns: Columns, wanted: str = "") -> str:
    """The names of a row's columns as an error lists them, those near the wanted one first."""
    names = sorted(_paths(columns), key=lambda name: _distance(wanted, name) or 9.0)
    shown = [repr(name[:_NAME_CHARACTERS]) for name in names[:_MOST_LISTED]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "") if shown else "none"


def nearest(wanted: str, columns: Columns) -> str | None:
    """The name of the column that a wanted one most likely is; None where none is near."""
    near = [(distance, name) for name in _paths(columns) if (distance := _distance(wanted, name))]
    return min(near)[1] if near else None


def quoted(name: str) -> str:
    """A column's name as YAML has it."""
    return name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def line_for(layouts: Sequence[Sequence[str]], columns: Columns) -> str:
    """What to write so that a row has one of these layouts: `data.columns: {prompt: question}`.

    Args:
        layouts: Names of columns that a job can take together, the likelier first.
        columns: The row's.

    Returns:
        The line, or an empty text where no layout comes out of the row's columns.
    """
    found = [each for layout in layouts if (each := _assigned(layout, columns)) is not None]
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
        near = [
            (distance, name)
            for name, value in _few(columns)
            if name not in names.values()
            and _holds(wanted, value)
            and (distance := _distance(wanted, name))
        ]
        if near:
            distance, names[wanted] = min(near)
            total += distance
    missing = [wanted for wanted in layout if wanted not in names]
    others = [
        name
        for name, value in columns.items()
        if name not in names.values() and isinstance(value, str) and len(name) <= _NAME_CHARACTERS
    ]
    if len(missing) == len(others) == 1 and missing[0] == "prompt":
        names["prompt"] = others[0]
    elif missing:
        return None
    return total / len(layout), {wanted: names[wanted] for wanted in layout}


def _line_for_sides(columns: Columns) -> str:
    """Two answers of like names, and what may say which is better: two numbers, or some label."""
    answers = {name: value for name, value in columns.items() if _holds("chosen", value)}
    numbers = {name: value for name, value in columns.items() if isinstance(value, int | float)}
    sides, scores = _like_names(answers), _like_names(numbers)
    if sides is None:
        return ""
    prompt = "prompt" if "prompt" in columns else nearest("prompt", answers)
    asked = {"prompt": prompt} if prompt and prompt != "prompt" else {}
    names = {**asked, "a": sides[0], "b": sides[1]}
    if scores is not None:
        names |= {"score_a": scores[0], "score_b": scores[1]}
    line = ", ".join(f"{ours}: {quoted(theirs)}" for ours, theirs in names.items())
    label = "" if scores else ", better: {column: LABEL, a: ..., b: ...}"
    return f"data.columns: {{{line}{label}}}"


def _like_names(columns: Columns) -> tuple[str, str] | None:
    """The first two columns whose names are alike but for their end."""
    for one, other in itertools.combinations(list(columns)[:_MOST_LISTED], 2):
        if _ends(one) and _ends(one) == _ends(other):
            return one, other
    return None


def _ends(name: str) -> str | None:
    """A name without the letter or digit that tells two answers apart."""
    if len(name) > _NAME_CHARACTERS:
        return None
    match = re.fullmatch(r"(.*?)_?(a|b|A|B|[012]|left|right)", name)
    return match[1] if match else None


def _paths(columns: Columns) -> list[str]:
    return [name for name, _ in _few(columns)]


def _few(columns: Columns) -> Iterator[tuple[str, Any]]:
    return itertools.islice(_values(columns), _MOST_FOUND)


def _values(columns: Columns, above: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """Every column, and what stands inside of those that hold objects, by its path."""
    below = []
    for name, value in columns.items():
        path = f"{above}{name}"
        yield path, value
        if isinstance(value, dict) and depth < _DEEPEST:
            below.append((path, value))
    for path, value in below:
        yield from _values(value, f"{path}.", depth + 1)


def _holds(wanted: str, value: Any) -> bool:
    """Whether a column can be the wanted one, by what is in it."""
    is_chat = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    kinds: Mapping[str, Callable[[], bool]] = {
        "messages": lambda: is_chat,
        "answers": lambda: isinstance(value, list),
        "scores": lambda: isinstance(value, list),
        "label": lambda: isinstance(value, bool | int | float | str),
        "text": lambda: isinstance(value, str),
    }
    if wanted in kinds:
        return kinds[wanted]()
    return isinstance(value, str) or (is_chat and wanted in _CHAT_COLUMNS)


def _distance(wanted: str, name: str) -> float:
    """How far a name lies from the wanted one, from 1 on; 0 where it does not lie near at all."""
    if not wanted or len(name) > 2 * _NAME_CHARACTERS:
        return 0
    wanted = wanted[:_NAME_CHARACTERS].lower()
    last = name.rpartition(".")[2].lower()
    depth = 0.1 * name.count(".")
    called = [wanted, *_ALSO_CALLED.get(wanted, ())]
    if last in called:
        return 1 + depth + 0.01 * called.index(last)
    words = re.split(r"[^a-z0-9]+", last)
    if beginnings := [i for i, each in enumerate(called) if each and each in (words[0], words[-1])]:
        return 2 + depth + 0.01 * beginnings[0]
    ratio = difflib.SequenceMatcher(None, wanted, last).ratio()
    return 3 + depth + (1 - ratio) if ratio >= _SIMILAR else 0.0
