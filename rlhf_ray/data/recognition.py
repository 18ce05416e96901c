"""Which format a row is of, by its columns, for the job that reads it; or the line to write."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from rlhf_ray.data import fields
from rlhf_ray.data.errors import DataError, RowError
from rlhf_ray.data.files import Row
from rlhf_ray.data.nearest import listed, nearest
from rlhf_ray.data.parsed_rows import Columns
from rlhf_ray.data.proposals import line_for
from rlhf_ray.data.row_format import Kind, RowFormat
from rlhf_ray.data.row_formats import ROW_FORMATS

# What the plainest formats of a kind are made of, to name what a job needs.
_LAYOUTS: Mapping[Kind, tuple[tuple[str, ...], ...]] = {
    "examples": (("prompt", "completion"), ("instruction", "output"), ("messages",)),
    "texts": (("text",),),
    "labels": (("prompt", "completion", "label"), ("messages", "label")),
    "preferences": (("prompt", "chosen", "rejected"), ("prompt", "answers", "scores")),
    "prompts": (("prompt",), ("messages",), ("instruction",)),
}
# Columns that hold the answer to a column `text`.
_ANSWERS = ("response", "completion", "output", "answer", "target", "summary", "reply")


def recognise(row: Row, *, kinds: Collection[Kind], what: str = "examples") -> RowFormat:
    """The format that a row's columns show: the first of the table that the job can take.

    Args:
        row: The first of the data set.
        kinds: That the job takes. Where prompts are among them, a column `prompt` is the prompt,
            whatever stands beside it.
        what: The job takes, for errors.

    Raises:
        RowError: The columns show none.
        DataError: They show one that the job cannot take.
    """
    columns = row.columns
    shown = [each for each in ROW_FORMATS.values() if each.shown_by(columns)]
    if not shown:
        raise RowError(
            row.where, "no known format has these columns", _advice(columns, kinds, what)
        )
    is_prompt = "prompts" in kinds and isinstance(columns.get("prompt"), str | list)
    if is_prompt and not shown[0].reads_prompt:
        return ROW_FORMATS["prompt"]
    taken = next((each for each in shown if each.kind in kinds), None)
    if taken is None or _is_judged(shown[0], columns, kinds):
        raise refusal(row, shown[0], kinds, what, beside=taken)
    if taken.name == "text" and not is_prompt and (answer := _answer_beside(columns, kinds)):
        raise DataError(
            f"{row.where}: column 'text' has {answer!r} beside it: to train that as the answer set "
            f"data.columns: {{prompt: text, completion: {answer}}}; to train text alone, as a "
            "whole, set data.format: text"
        )
    return taken


def refusal(
    row: Row,
    shown: RowFormat,
    kinds: Collection[Kind],
    what: str,
    *,
    beside: RowFormat | None = None,
) -> DataError:
    """What a job says of a format that it cannot take.

    Args:
        row: The first.
        shown: Its format.
        kinds: That the job takes.
        what: The job takes.
        beside: A format that it could take, if its label did not count.
    """
    used = ", ".join(name for name in row.columns if name in shown.columns)
    message = f"{row.where}: {what} cannot be made of {shown.name} rows ({used})"
    if beside is not None:
        return DataError(
            f"{message}: their label says which are good and which are bad, and all would be "
            f"trained; that is for dpo with loss_type [kto]. To train all, set data.format: "
            f"{beside.name}"
        )
    if shown.note and shown.kind == "prompts":
        return DataError(f"{message}: {shown.note}")
    if shown.kind == "labels" and "preferences" in kinds:
        return DataError(
            f"{message}: answers that are labelled one by one are for dpo with loss_type [kto]; "
            f"{what} are two or more answers to one prompt"
        )
    return DataError(f"{message}: {_advice(row.columns, kinds, what)}")


def _is_judged(shown: RowFormat, columns: Columns, kinds: Collection[Kind]) -> bool:
    """Whether rows have a label of good or bad that the job would not see.

    Prompts are as good as others; a label may also be any other column of that name.
    """
    if shown.kind != "labels" or {"labels", "prompts"} & set(kinds):
        return False
    return fields.is_truth(columns["label"])


def _answer_beside(columns: Columns, kinds: Collection[Kind]) -> str:
    """The column that plainly answers the column `text`; empty for a job that takes prompts."""
    if "prompts" in kinds:
        return ""
    return next((name for name in _ANSWERS if isinstance(columns.get(name), str)), "")


def _warning(columns: Columns, kinds: Collection[Kind]) -> str:
    """That a column judges answers, of a job that would train all of them."""
    judge = nearest("label", {name: value for name, value in columns.items() if value in (0, 1)})
    if judge is None or {"labels", "prompts"} & set(kinds) or "examples" not in kinds:
        return ""
    return f"; {judge!r} says which answers are good, and all would be trained"


def _advice(columns: Columns, kinds: Collection[Kind], what: str) -> str:
    """What there is, and the line to write."""
    layouts = [layout for kind in _LAYOUTS if kind in kinds for layout in _LAYOUTS[kind]]
    if "prompts" in kinds:  # a prompt is all that such a job needs of any of them
        layouts = [*_LAYOUTS["prompts"]]
    if "input_ids" in columns:
        return "tokens (input_ids) are not read: give the texts or chats that they were made of"
    if "role" in columns and isinstance(columns.get("text", columns.get("content")), str):
        return (
            "each row is one message of a conversation: put those of one conversation into a list, "
            "in a column messages, or in OpenAssistant's form, with message_tree_id and parent_id"
        )
    needed = " or ".join(" + ".join(layout) for layout in layouts)
    there = f"there are {listed(columns, layouts[0][0])}; {what} need {needed}"
    line = line_for(layouts, columns)
    if not line and "preferences" in kinds:
        line = line_for([("chosen", "rejected")], columns)
    if line:
        return f"{there}: set {line}{_warning(columns, kinds)}"
    if all(isinstance(columns.get(side), str) for side in ("chosen", "rejected")):
        return (
            f"{there}: name the prompt by data.columns, or set data.format: common_beginning, "
            "which takes the words that both answers begin with as the prompt"
        )
    names = ", ".join(f"{name}: ..." for name in layouts[0] if name not in columns)
    return f"{there}: name them by data.columns: {{{names}}}"
