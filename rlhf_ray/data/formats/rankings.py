"""Row formats with several answers to one prompt: by order, rank or score, and trees of replies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rlhf_ray.data.formats import fields
from rlhf_ray.data.formats.conversations import aligned, read_prompt_column, with_system
from rlhf_ray.data.formats.dialogues import with_helpsteer_turns
from rlhf_ray.data.formats.row_format import Grouping, RowFormat, lists_objects
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.data.json_values import Messages, is_message, unfolded
from rlhf_ray.data.nearest import listed
from rlhf_ray.data.row import Columns, Row
from rlhf_ray.errors import RowError, UnusableRow, short

_ROLES = {"prompter": "user", "assistant": "assistant"}


def read_oasst_tree(row: Row) -> Iterator[Sample | RowError]:
    """A tree of replies (OpenAssistant): siblings with a `rank` (0 is best) are one ranking.

    The prompt is the path to them; what the human might have gone on with is not ranked.
    """
    root = unfolded(fields.column(row, "prompt"))
    pending: list[tuple[Any, Messages]] = [(root, [])]
    num_siblings = 0
    while pending:
        node, path = pending.pop()
        path = [*path, _message(row, node)]
        replies = node.get("replies") or []
        if not isinstance(replies, list):
            raise RowError(row.where, "wrong type", "'replies' must be a list")
        replies = [reply for reply in replies if not _is_deleted(reply)]
        pending += [(reply, path) for reply in reversed(replies)]
        if path[-1]["role"] != "user" or len(replies) < 2:
            continue
        num_siblings += 1
        levels = [(_rank(row, reply), reply) for reply in replies]
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
                answers_K=tuple([_message(row, reply)] for _, reply in ranked),
                levels_K=tuple(-rank for rank, _ in ranked),
            )
    if not num_siblings:
        yield UnusableRow(row.where, "no ranked replies")


def _message(row: Row, node: Any) -> dict[str, str]:
    if not isinstance(node, dict) or str(node.get("role")) not in _ROLES:
        wanted = f"a node{_place(node)} must be an object with `role` prompter or assistant"
        raise RowError(row.where, "wrong type", wanted)
    text = node.get("text")
    if not isinstance(text, str):
        wanted = f"the `text` of a node{_place(node)} must be a string, got {short(text)}"
        raise RowError(row.where, "wrong type", wanted)
    content = fields.checked_text(row, "text", text)
    return {"role": _ROLES[node["role"]], "content": content}


def _rank(row: Row, node: Any) -> float | None:
    """A reply's rank; None where it has none, which pandas writes as NaN."""
    rank = node.get("rank") if isinstance(node, dict) else None
    if rank is None or rank == "" or rank != rank:
        return None
    number = fields.as_number(rank)
    if number.is_integer():
        return number
    wanted = f"the `rank` of a node{_place(node)} must be a whole number, got {short(rank)}"
    raise RowError(row.where, "wrong type", wanted)


def _is_deleted(node: Any) -> bool:
    """Whether a message was taken back, as OpenAssistant's are that were found wanting."""
    return isinstance(node, dict) and str(node.get("deleted")).lower() == "true"


def _place(node: Any) -> str:
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


# What an answer that is an object may call its text, its rank and its score.
_OWN_KEYS = {
    "answers": ("answer", "response", "text"),
    "ranks": ("rank",),
    "scores": ("score", "overall_score", "pm_score"),
}


def read_ranking(row: Row) -> Iterator[Sample]:
    """`prompt` and `answers`, the best first, or with `ranks` (the lowest is best) or `scores`.

    Answers may be objects that have their own (`{"answer": "4", "rank": 1}`).
    """
    sample = _ranking(row)
    if not sample.levels_K and (numbers := _numbers_of_answers(row)):
        known = ", ".join((*_OWN_KEYS["ranks"], *_OWN_KEYS["scores"]))
        detail = (
            f"each of {row.called('answers')!r} must have one of {known}, or the row ranks or "
            f"scores for all of them; they have {numbers}"
        )
        raise RowError(row.where, "answers without a known rank or score", detail)
    yield sample


def read_scored_ranking(row: Row) -> Iterator[Sample]:
    """`prompt` and `answers` with a score each (UltraFeedback): their order says nothing."""
    sample = _ranking(row)
    if not sample.levels_K:
        known = " or ".join(_OWN_KEYS["scores"])
        detail = (
            f"no object of {row.called('answers')!r} has {known}: give each its score by one of "
            "these names"
        )
        raise RowError(row.where, "no scores", detail)
    yield sample


def _ranking(row: Row) -> Sample:
    if unfolded(row.columns.get("answers")) == []:
        raise UnusableRow(row.where, "no answers")
    row = _with_own_levels(row)
    answers = fields.texts(row, "answers")
    levels = _levels(row, len(answers))
    order = sorted(range(len(levels)), key=lambda index: -levels[index]) or range(len(answers))
    prompt = read_prompt_column(row)
    kept = [aligned(row, prompt, answers[index]) for index in order]
    levels_K = tuple(sorted(levels, reverse=True))
    return Sample.of(row, kept[0][0], *(answer for _, answer in kept), levels_K=levels_K)


def _numbers_of_answers(row: Row) -> str:
    """Names of what may rate answers that are objects, as an error lists them."""
    names = dict.fromkeys(
        repr(name)
        for answer in fields.items(row, "answers")
        if isinstance(answer, dict) and not is_message(answer)
        for name, value in answer.items()
        if isinstance(value, int | float)
    )
    return ", ".join(names)[:200]


def _levels(row: Row, num_answers: int) -> list[float]:
    """How good each answer is, the higher the better; empty where their order says it."""
    given: dict[str, list[float]] = {}
    there: list[str] = [name for name in ("scores", "ranks") if name in row.columns]
    for name in [name for name in there if not fields.is_blank(row, name)] or there[:1]:
        sign = 1 if name == "scores" else -1
        given[name] = [sign * level for level in fields.numbers(row, name)]
    for name, levels in given.items():
        if len(levels) != num_answers:
            wanted = f"{num_answers} answers need as many in {row.called(name)!r}"
            raise RowError(row.where, "wrong number of ranks", f"{wanted}, got {len(levels)}")
    if len(given) == 2 and _order(given["scores"]) != _order(given["ranks"]):
        scores, ranks = map(row.called, given)
        detail = (
            f"{scores!r} (the highest is best) and {ranks!r} (the lowest is best) tell different "
            "orders: take one of the columns away"
        )
        raise RowError(row.where, "ranks and scores that differ", detail)
    return next(iter(given.values()), [])


def _order(levels: Sequence[float]) -> list[int]:
    return [sum(other > level for other in levels) for level in levels]


def _with_own_levels(row: Row) -> Row:
    """The row with ranks or scores beside its answers, where each answer has its own."""
    answers = fields.items(row, "answers")
    if not all(isinstance(answer, dict) and not is_message(answer) for answer in answers):
        return row
    columns, names = dict(row.columns), dict(row.names)
    for name, keys in _OWN_KEYS.items():
        key = next((key for key in keys if any(key in answer for answer in answers)), None)
        if key is not None:
            columns[name] = [answer.get(key) for answer in answers]
            names[name] = f"{row.called('answers')}.{key}"
    if not set(_OWN_KEYS["answers"]) & set().union(*answers):
        known = " or ".join(_OWN_KEYS["answers"])
        wanted = f"an answer that is an object must have {known}, or role and content"
        raise RowError(row.where, "wrong type", f"{wanted}, got {listed(answers[0])}")
    return replace(row, columns=columns, names=names)


def _listed(group: list[Row]) -> Row:
    """Every column but the prompt as the list of its values."""
    names = dict.fromkeys(name for row in group for name in row.columns)
    values: Columns = {name: [row.columns.get(name) for row in group] for name in names}
    return replace(group[0], columns={**values, "prompt": group[0].columns.get("prompt")})


_format = partial(RowFormat, kind="preferences")
RANKING_FORMATS = (
    _format(
        name="ultrafeedback", columns=("instruction", "completions"),
        fits=lambda columns: unfolded(columns["completions"]) == []
        or lists_objects("completions", "response")(columns),
        names={"prompt": "instruction", "answers": "completions"},
        read=read_scored_ranking, prompt_columns=("instruction",),
    ),
    _format(
        name="helpsteer", columns=("prompt", "response", "helpfulness"),
        group=Grouping(key="prompt", join=_listed),
        names={"answers": "response", "scores": "helpfulness"},
        prepare=with_helpsteer_turns, read=read_ranking, reads_prompt=True,
    ),
    _format(
        name="stack_exchange", columns=("question", "answers"),
        fits=lists_objects("answers", "text", "pm_score"), names={"prompt": "question"},
        read=read_scored_ranking, prompt_columns=("question",),
    ),
    _format(name="ranking", columns=("prompt", "answers"), read=read_ranking),
    _format(
        name="oasst_message", prepare=_rooted, read=read_oasst_tree,
        columns=("message_id", "role", "text", "replies"),
    ),
    _format(
        name="oasst_flat", read=read_oasst_tree,
        group=Grouping(key="message_tree_id", join=_joined),
        columns=("message_tree_id", "message_id", "parent_id", "role", "text"),
    ),
    _format(
        name="oasst_tree", columns=("prompt",), fits=_is_tree,
        read=read_oasst_tree, reads_prompt=True,
    ),
)  # fmt: skip
