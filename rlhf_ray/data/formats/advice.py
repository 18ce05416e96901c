"""Advice on rows that are not recognised: what there is, what is needed, what to write."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from rlhf_ray.data.formats.proposals import names_for
from rlhf_ray.data.formats.row_format import Kind
from rlhf_ray.data.nearest import listed, nearest, quoted
from rlhf_ray.data.row import Row

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


def advice(row: Row, kinds: Collection[Kind], what: str) -> str:
    """What columns there are, what a job needs, and the line to write.

    Args:
        row: One that is not recognised.
        kinds: That the job takes.
        what: The job takes, for the message.
    """
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
    names = names_for(layouts, columns, with_sides="preferences" in kinds)
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
