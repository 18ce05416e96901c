"""Columns by the names that the configuration gives them, whatever a file calls them."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from rlhf_ray.config.data import BetterConfig, plain_label
from rlhf_ray.data.json_values import unfolded
from rlhf_ray.data.nearest import listed, nearest, quoted
from rlhf_ray.data.row import Columns, Located
from rlhf_ray.errors import DataError, RowError, short

# Ours -> theirs, which may be a path into a column, or a label that says which answer is better.
Names: TypeAlias = Mapping[str, str | BetterConfig]

_ROWS_AHEAD = 100  # a file of JSON lines may leave out what is empty
_INDEX = re.compile(r"-?\d+")
_ABSENT = object()


def named(columns: Columns, names: Names, where: str) -> Columns | RowError:
    """Columns by our names, or what is wrong with a label. One that the row lacks stays missing."""
    try:
        found = resolved(columns, names, where)
    except RowError as error:
        return error
    taken = {*names, *(theirs for theirs in names.values() if isinstance(theirs, str))}
    kept = {name: value for name, value in columns.items() if name not in taken}
    return kept | found


def file_names(names: Names) -> dict[str, str]:
    """What a file calls columns, by our names; of a label that says which is better, nothing."""
    return {ours: theirs for ours, theirs in names.items() if isinstance(theirs, str)}


def resolved(columns: Columns, names: Names, where: str) -> Columns:
    """What `names` names, by our names.

    Raises:
        RowError: A label that says nothing.
    """
    found: Columns = {}
    for ours, theirs in names.items():
        if isinstance(theirs, BetterConfig):
            found[ours] = _better(columns, theirs, where)
        elif (value := _at(columns, theirs)) is not _ABSENT:
            found[ours] = value
    return found


def check_names(rows: Iterator[Located], names: Names) -> Iterator[Located]:
    """The same rows, once every name stands in one of the first.

    Raises:
        DataError: One does not.
    """
    missing = {
        name: ours
        for ours, theirs in names.items()
        for name in (theirs.columns if isinstance(theirs, BetterConfig) else [theirs])
    }
    ahead: list[Located] = []
    first: tuple[str, Columns] | None = None
    while missing and len(ahead) < _ROWS_AHEAD and (row := next(rows, None)) is not None:
        ahead.append(row)
        where, columns = row[1]
        if not isinstance(columns, RowError):
            first = first or (where, columns)
            missing = {n: ours for n, ours in missing.items() if _at(columns, n) is _ABSENT}
    if missing and first is not None:
        raise _absent(*first, missing)
    return itertools.chain(ahead, rows)


def _absent(where: str, columns: Columns, missing: Mapping[str, str]) -> DataError:
    theirs, ours = next(iter(missing.items()))
    near = nearest(theirs, columns) or nearest(ours, columns)
    name = quoted(near or "")
    line = f"{ours}: {{column: {name}, ...}}" if ours == "better" else f"{ours}: {name}"
    if ours in columns:  # the other way round: the name here comes first
        line = f"{quoted(theirs)}: {quoted(ours)}"
        near = ours
    meant = f"; did you mean data.columns: {{{line}}}?" if near else ""
    return DataError(
        f"{where}: data.columns names {short(theirs)} for {ours!r}, and there is no such column; "
        f"there are {listed(columns, theirs)}{meant}"
    )


def _at(columns: Columns, path: str) -> Any:
    """What stands in a column, or inside of one: keys and indices of lists, parted by dots."""
    if path in columns:
        return columns[path]
    value: Any = columns
    for part in path.split("."):
        value = unfolded(value)
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and _INDEX.fullmatch(part):
            if not -len(value) <= int(part) < len(value):
                return _ABSENT
            value = value[int(part)]
        elif value is None:
            return None
        else:
            return _ABSENT
    return value


def _better(columns: Columns, config: BetterConfig, where: str) -> str:
    """`a`, `b` or `tie`; of several labels, what most say, and `tie` where two say it as often."""
    votes: Counter[str] = Counter()
    for name in config.columns:
        label = _at(columns, name)
        if label is None or label is _ABSENT:
            continue
        is_label = isinstance(label, str | int | float)
        side = config.sides.get(plain_label(label)) if is_label else None
        if side is None:
            known = "; ".join(
                f"{side}: {', '.join(map(str, config.labels(side)))[:80] or 'none'}"
                for side in ("a", "b", "tie")
            )
            detail = f"column {short(name)} says {short(label)}; data.columns.better has {known}"
            raise RowError(where, "unknown label", detail)
        votes[side] += 1
    if not votes:
        raise RowError(where, "no label", f"nothing in {', '.join(config.columns)[:80]}")
    (most, count), *others = votes.most_common()
    return most if not others or others[0][1] < count else "tie"
