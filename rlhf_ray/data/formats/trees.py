"""Trees of replies, as OpenAssistant publishes them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rlhf_ray.data.formats import fields
from rlhf_ray.data.formats.conversations import with_system
from rlhf_ray.data.formats.row_format import Grouping, RowFormat
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.data.json_values import unfolded
from rlhf_ray.data.row import Columns, Row
from rlhf_ray.data.text import Messages
from rlhf_ray.errors import RowError, UnusableRow, short

_TREE_ROLES = {"prompter": "user", "assistant": "assistant"}


def read_oasst_tree(row: Row) -> Iterator[Sample | RowError]:
    """A tree of replies (OpenAssistant): siblings with a `rank` (0 is best) are one ranking.

    The prompt is the path to them; what the human might have gone on with is not ranked.
    """
    root = unfolded(fields.column(row, "prompt"))
    pending: list[tuple[Any, Messages]] = [(root, [])]
    num_siblings = 0
    while pending:
        node, path = pending.pop()
        path = [*path, _tree_message(row, node)]
        replies = node.get("replies") or []
        if not isinstance(replies, list):
            raise RowError(row.where, "wrong type", "'replies' must be a list")
        replies = [reply for reply in replies if not _is_deleted(reply)]
        pending += [(reply, path) for reply in reversed(replies)]
        if path[-1]["role"] != "user" or len(replies) < 2:
            continue
        num_siblings += 1
        levels = [(_tree_rank(row, reply), reply) for reply in replies]
        ranked = sorted(
            ((rank, reply) for rank, reply in levels if rank is not None), key=lambda each: each[0]
        )
        if len(ranked) < 2:
            yield UnusableRow(row.where, "unranked replies")
        else:
            yield Sample(
                sample_id=f"{row.row_id}/{num_siblings}",
                where=row.where,
                prompt=with_system(row, path),
                answers_K=tuple([_tree_message(row, reply)] for _, reply in ranked),
                levels_K=tuple(-rank for rank, _ in ranked),
            )
    if not num_siblings:
        yield UnusableRow(row.where, "no ranked replies")


def _tree_message(row: Row, node: Any) -> dict[str, str]:
    if not isinstance(node, dict) or str(node.get("role")) not in _TREE_ROLES:
        wanted = f"a node{_tree_place(node)} must be an object with `role` prompter or assistant"
        raise RowError(row.where, "wrong type", wanted)
    text = node.get("text")
    if not isinstance(text, str):
        wanted = f"the `text` of a node{_tree_place(node)} must be a string, got {short(text)}"
        raise RowError(row.where, "wrong type", wanted)
    content = fields.checked_text(row, "text", text)
    return {"role": _TREE_ROLES[node["role"]], "content": content}


def _tree_rank(row: Row, node: Any) -> float | None:
    """A reply's rank; None where it has none, which pandas writes as NaN."""
    rank = node.get("rank") if isinstance(node, dict) else None
    if rank is None or rank == "" or rank != rank:
        return None
    try:
        number = math.nan if isinstance(rank, bool) else float(rank)
    except (TypeError, ValueError):
        number = math.nan
    if number.is_integer():
        return number
    wanted = f"the `rank` of a node{_tree_place(node)} must be a whole number, got {short(rank)}"
    raise RowError(row.where, "wrong type", wanted)


def _is_deleted(node: Any) -> bool:
    """Whether a message was taken back, as OpenAssistant's are that were found wanting."""
    return isinstance(node, dict) and str(node.get("deleted")).lower() == "true"


def _tree_place(node: Any) -> str:
    """Which message of a tree it is, where it has a name."""
    name = node.get("message_id") if isinstance(node, dict) else None
    return " of a tree" if name is None else f" of a tree (message_id {short(name)})"


def _rooted(row: Row) -> Row:
    """The row with the tree whose root it is itself as its prompt."""
    root = {**row.columns, "replies": unfolded(row.columns["replies"])}
    return replace(row, columns={**row.columns, "prompt": root})


def _joined(group: list[Row]) -> Row:
    """The messages of a tree as the tree that their `parent_id` makes."""
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


def _is_tree(columns: Columns) -> bool:
    root = unfolded(columns["prompt"])
    is_object = root is columns["prompt"]
    return isinstance(root, dict) and (is_object or {"text", "replies"} <= root.keys())


TREE_FORMATS = (
    RowFormat(
        name="oasst_message", kind="preferences", prepare=_rooted, read=read_oasst_tree,
        columns=("message_id", "role", "text", "replies"),
    ),
    RowFormat(
        name="oasst_flat", kind="preferences", read=read_oasst_tree,
        group=Grouping(key="message_tree_id", join=_joined),
        columns=("message_tree_id", "message_id", "parent_id", "role", "text"),
    ),
    RowFormat(
        name="oasst_tree", kind="preferences", columns=("prompt",), fits=_is_tree,
        read=read_oasst_tree, reads_prompt=True,
    ),
)  # fmt: skip
