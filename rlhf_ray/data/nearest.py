"""Which column is meant: names that lie near a wanted one, and how an error lists those there."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_ray.data.json_values import glimpsed, is_message
from rlhf_ray.data.row import Columns

NAME_CHARACTERS = 40  # of a name that an error lists, and of one that may be meant
_MOST_LISTED = 12  # names that an error lists
_MOST_FOUND = 200  # names that are looked at, of a row with thousands
_PLAIN = re.compile(r"[\w.-]+")
_DEEPEST = 3  # levels of a path
_SIMILAR = 0.75  # of difflib's ratio: "quesiton" for "question"
# What data sets call a column, the more usual first.
_ALSO_CALLED: Mapping[str, tuple[str, ...]] = {
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
    "output": ("response", "solution", "answer", "reply", "target", "completion", "result"),
    "chosen": (
        "preferred", "accepted", "winner", "positive", "good", "response_j", "best", "better",
        "win",
    ),
    "rejected": (
        "dispreferred", "nonpreferred", "loser", "negative", "bad", "response_k", "worst", "worse",
        "lose",
    ),
    "messages": ("conversations", "conversation", "dialogue", "dialog", "chat", "turns", "text"),
    "text": ("content", "document", "body", "story", "passage", "article"),
    "label": (
        "desirable", "is_good", "thumbs_up", "thumbsup", "kto_tag", "is_safe", "is_correct",
        "correct", "preference", "feedback", "score",
    ),
    "better": (
        "winner", "preference", "preferred", "choice", "chosen", "verdict", "judgment",
        "judgement", "vote", "annotation",
    ),
    "answers": ("responses", "completions", "generations", "candidates", "outputs"),
    "scores": ("ratings", "rewards"),
    "ranks": ("rank", "ranking", "rankings"),
    "answer": ("ground_truth", "solution", "target", "label", "final_answer", "reference",
               "expected", "gold"),
}  # fmt: skip
# How names end that tell something about a text and hold none.
_ABOUT = {
    "id", "ids", "uid", "uuid", "hash", "sha256", "idx", "index", "name", "type", "kind",
    "tag", "tags", "category", "format", "model", "source", "origin", "language", "lang", "url",
    "date", "time", "timestamp", "path", "file", "len", "length", "tokens", "count", "num", "level",
    "version", "split", "subset", "dataset", "domain", "topic", "task", "author", "annotator",
    "generator",
}  # fmt: skip
# And how those begin that are no part of what is asked and answered.
_BESIDE = {"system", "meta"}


def listed(columns: Columns, wanted: str = "") -> str:
    """The names of a row's columns as an error lists them, those near the wanted one first."""
    paths = [name for name, _ in _few(columns)]
    names = sorted(paths, key=lambda name: distance(wanted, name) or 9.0)
    shown = [repr(name[:NAME_CHARACTERS]) for name in names[:_MOST_LISTED]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "") if shown else "none"


def nearest(wanted: str, columns: Columns) -> str | None:
    """The name of the column that a wanted one most likely is; None where none is near."""
    by_index = re.sub(r"\[(\w+)\]", r".\1", wanted)
    if by_index != wanted and by_index in dict(_few(columns, through_lists=True)):
        return by_index
    near = [(far, name) for name, _ in _few(columns) if (far := distance(wanted, name))]
    return min(near)[1] if near else None


def quoted(name: str) -> str:
    """A name as the configuration would have it."""
    return name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def named_values(columns: Columns) -> Iterator[tuple[str, Any]]:
    """Every column, and what stands inside of those that hold objects, by its path; not too many.

    Of a list that is no chat the first item counts as well.
    """
    for name, value in _few(columns):
        yield name, value
        inner = glimpsed(value)
        if isinstance(inner, list) and inner and not is_chat(inner):
            yield f"{name}.0", inner[0]


def distance(wanted: str, name: str) -> float:
    """How far a name lies from the wanted one, from 1 on; 0 where it does not lie near at all."""
    if not wanted or len(name) > 2 * NAME_CHARACTERS:
        return 0
    wanted = wanted[:NAME_CHARACTERS].lower()
    parts = [part for part in name.lower().split(".") if not part.isdigit()] or [name]
    last = parts[-1]
    depth = 0.1 * name.count(".")
    called = [wanted, *_ALSO_CALLED.get(wanted, ())]
    singular = last.removesuffix("s")
    for index, each in enumerate(called):
        if each in (last, singular):
            return 1 + depth + 0.01 * index
    if is_about(last) and not is_about(wanted):
        return 0
    in_it = words(last)
    ends = {in_it[0], in_it[-1], "".join(in_it[:2])}
    if beginnings := [i for i, each in enumerate(called) if each and each in ends]:
        return 2 + depth + 0.01 * beginnings[0]
    ratio = difflib.SequenceMatcher(None, wanted, last).ratio()
    return 3 + depth + (1 - ratio) if ratio >= _SIMILAR else 0.0


def words(name: str) -> list[str]:
    """The parts of a name between all that is no letter and no digit."""
    return re.split(r"[^a-z0-9]+", name.lower())


def side_of(name: str) -> tuple[str, str] | None:
    """A name, parted before the letter or digit that tells two answers apart; None without one."""
    if len(name) > NAME_CHARACTERS:
        return None
    match = re.fullmatch(r"(.*?)[_ ]?(a|b|A|B|\d|left|right)", name)
    return (match[1], match[2]) if match is not None and match[1] else None


def is_about(name: str) -> bool:
    """Whether a name is that of something about a text: its id, its length, its model."""
    parted = side_of(name)
    names = [words(name), words(parted[0] if parted else name)]
    return any(parts[-1] in _ABOUT or parts[0] in _BESIDE for parts in names)


def is_chat(value: Any) -> bool:
    """Whether a value looks like a list of messages, or its JSON text."""
    chat = glimpsed(value)
    return isinstance(chat, list) and bool(chat) and is_message(chat[0])


def _few(columns: Columns, *, through_lists: bool = False) -> Iterator[tuple[str, Any]]:
    return itertools.islice(_values(columns, through_lists=through_lists), _MOST_FOUND)


def _values(
    columns: Columns, above: str = "", depth: int = 1, *, through_lists: bool
) -> Iterator[tuple[str, Any]]:
    """Every column, and what stands inside of those that hold objects, by its path."""
    below = []
    for name, value in columns.items():
        path = f"{above}{name}"
        yield path, value
        inner = value if depth == _DEEPEST else glimpsed(value)
        if through_lists and isinstance(inner, list):
            inner = {str(index): item for index, item in enumerate(inner)}
        if isinstance(inner, dict) and depth < _DEEPEST:
            below.append((path, inner))
    for path, inner in below:
        yield from _values(inner, f"{path}.", depth + 1, through_lists=through_lists)
