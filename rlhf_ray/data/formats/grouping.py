"""Rows that stand next to each other and are one: answers to one prompt, messages of one tree.

Only neighbours are put together, as published files have them, so no more than one group is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from rlhf_ray.data.errors import RowError, short
from rlhf_ray.data.row import Row

_MOST_ROWS = 10_000  # of one group; the largest tree of OpenAssistant has some hundreds


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """How neighbouring rows become one.

    Attributes:
        key: The column that they have in common.
        join: One row of several.
    """

    key: str
    join: Callable[[list[Row]], Row | RowError]

    def __call__(self, rows: Iterator[Row | RowError]) -> Iterator[Row | RowError]:
        """One row for neighbours that have one key; what is wrong with a row in its place."""
        group: list[Row] = []
        for row in rows:
            if isinstance(row, RowError):
                yield row
                continue
            is_new = not group or row.columns.get(self.key) != group[0].columns.get(self.key)
            if group and (is_new or len(group) == _MOST_ROWS):
                yield self._joined(group)
                group = []
            group.append(row)
        if group:
            yield self._joined(group)

    def _joined(self, group: list[Row]) -> Row | RowError:
        if len(group) == _MOST_ROWS:
            what = f"{_MOST_ROWS} rows with one {self.key!r}: {short(group[0].columns[self.key])}"
            return RowError(group[0].where, "too many rows of one group", what)
        try:
            return self.join(group)
        except RowError as error:
            return error


def _listed(group: list[Row]) -> Row:
    """Every column but the prompt as the list of its values."""
    names = dict.fromkeys(name for row in group for name in row.columns)
    values: dict[str, Any] = {name: [row.columns.get(name) for row in group] for name in names}
    return replace(group[0], columns={**values, "prompt": group[0].columns.get("prompt")})


def _tree(group: list[Row]) -> Row:
    """The messages of a tree as the tree that their `parent_id` makes.

    Raises:
        RowError: There is not one root that all others hang on.
    """
    nodes = {str(row.columns.get("message_id")): {**row.columns, "replies": []} for row in group}
    roots = []
    for row in group:
        node = nodes[str(row.columns.get("message_id"))]
        parent = row.columns.get("parent_id")
        if parent is None or str(parent) in ("", "nan"):  # as CSV and pandas write it
            roots.append(node)
        elif str(parent) in nodes:
            nodes[str(parent)]["replies"].append(node)
        else:
            detail = (
                f"its parent {short(parent)} is not among the {len(group)} rows of its "
                "message_tree_id that stand together: sort the rows by message_tree_id"
            )
            raise RowError(row.where, "a reply without its parent", detail)
    if len(roots) != 1:
        detail = f"the {len(group)} rows of a tree have {len(roots)} messages without a parent_id"
        raise RowError(group[0].where, "not one tree", detail)
    return replace(group[0], columns={"prompt": roots[0]})


BY_PROMPT = Grouping(key="prompt", join=_listed)
BY_TREE = Grouping(key="message_tree_id", join=_tree)
