"""Which column is meant: names that lie near a wanted one, and how an error lists those there."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_ray.data.parsed_rows import Columns

NAME_CHARACTERS = 40  # of a name that an error lists, and of one that may be meant
_MOST_LISTED = 12  # names that an error lists
_MOST_FOUND = 200  # names that are looked at, of a row with thousands
_PLAIN = re.compile(r"[\w.-]+")
_DEEPEST = 3  # levels of a path
_SIMILAR = 0.75  # of difflib's ratio: "quesiton" for "question"
# What data sets call a column, the more usual first.
ALSO_CALLED: Mapping[str, tuple[str, ...]] = {
    "prompt": (
        "question", "query", "instruction", "problem", "input", "context", "history", "post",
        "request", "trajectory", "turns", "article", "document", "dialogue", "text",
    ),
    "completion": (
        "response", "solution", "answer", "output", "reply", "target", "result", "generation",
        "assistant", "summary", "highlights",
    ),
    "instruction": ("definition",),
    "input": ("inputs", "context"),
    "output": ("response", "solution", "answer", "reply", "target", "completion"),
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


def listed(columns: Columns, wanted: str = "") -> str:
    """The names of a row's columns as an error lists them, those near the wanted one first."""
    names = sorted(_paths(columns), key=lambda name: distance(wanted, name) or 9.0)
    shown = [repr(name[:NAME_CHARACTERS]) for name in names[:_MOST_LISTED]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "") if shown else "none"


def nearest(wanted: str, columns: Columns) -> str | None:
    """The name of the column that a wanted one most likely is; None where none is near."""
    near = [(far, name) for name in _paths(columns) if (far := distance(wanted, name))]
    return min(near)[1] if near else None


def quoted(name: str) -> str:
    """A column's name as YAML has it."""
    return name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def named_values(columns: Columns) -> Iterator[tuple[str, Any]]:
    """Every column, and what stands inside of those that hold objects, by its path; not too many.

    Of a list that is no chat the first item counts as well.
    """
    return itertools.islice(_values(columns, with_items=True), _MOST_FOUND)


def distance(wanted: str, name: str) -> float:
    """How far a name lies from the wanted one, from 1 on; 0 where it does not lie near at all."""
    if not wanted or len(name) > 2 * NAME_CHARACTERS:
        return 0
    wanted = wanted[:NAME_CHARACTERS].lower()
    parts = [part for part in name.lower().split(".") if not part.isdigit()] or [name]
    last = parts[-1]
    depth = 0.1 * name.count(".")
    called = [wanted, *ALSO_CALLED.get(wanted, ())]
    singular = last.removesuffix("s")
    for index, each in enumerate(called):
        if each in (last, singular):
            return 1 + depth + 0.01 * index
    first, *_, end = [*words(last)] * 2
    if beginnings := [i for i, each in enumerate(called) if each and each in (first, end)]:
        return 2 + depth + 0.01 * beginnings[0]
    ratio = difflib.SequenceMatcher(None, wanted, last).ratio()
    return 3 + depth + (1 - ratio) if ratio >= _SIMILAR else 0.0


def words(name: str) -> list[str]:
    """The parts of a name between all that is no letter and no digit."""
    return re.split(r"[^a-z0-9]+", name.lower())


def _paths(columns: Columns) -> list[str]:
    return [name for name, _ in itertools.islice(_values(columns), _MOST_FOUND)]


def _values(
    columns: Columns, above: str = "", depth: int = 1, *, with_items: bool = False
) -> Iterator[tuple[str, Any]]:
    below = []
    for name, value in columns.items():
        path = f"{above}{name}"
        yield path, value
        if with_items and isinstance(value, list) and value and not is_chat(value):
            yield f"{path}.0", value[0]
        if isinstance(value, dict) and depth < _DEEPEST:
            below.append((path, value))
    for path, value in below:
        yield from _values(value, f"{path}.", depth + 1, with_items=with_items)


def is_chat(value: Any) -> bool:
    """Whether a value looks like a list of messages."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and bool({"role", "from"} & first.keys())
