"""Row formats of texts: prompts, prompts with a completion, texts alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rlhf_ray.data.formats import fields
from rlhf_ray.data.formats.conversations import aligned, alpaca_prompt, read_prompt_column
from rlhf_ray.data.formats.row_format import ALPACA, RowFormat
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.data.messages import is_written_chat
from rlhf_ray.data.row import Columns, Row


def read_prompt(row: Row) -> Iterator[Sample]:
    """`prompt`: text, or a chat that the policy answers or goes on with."""
    yield Sample.of(row, read_prompt_column(row))


def read_instruction(row: Row) -> Iterator[Sample]:
    """Alpaca's instruction as a prompt alone."""
    yield Sample.of(row, alpaca_prompt(row))


def read_text(row: Row) -> Iterator[Sample]:
    """`text`."""
    yield Sample.of(row, None, fields.string(row, "text"))


def read_prompt_completion(row: Row) -> Iterator[Sample]:
    """`prompt` and `completion`, each text or messages; `truncated` where it was cut off."""
    prompt, completion = aligned(row, read_prompt_column(row), fields.answer(row, "completion"))
    truncated_K = (fields.optional_truth(row, "truncated"),)
    yield Sample.of(row, prompt, completion, truncated_K=truncated_K)


def read_unpaired(row: Row) -> Iterator[Sample]:
    """`prompt`, `completion` and a `label` that says whether it is good."""
    desirable = fields.truth(row, "label")
    for sample in read_prompt_completion(row):
        yield replace(sample, desirable=desirable)


def read_input_target(row: Row) -> Iterator[Sample]:
    """`input` and `target`, each text or messages; a target may be a number."""
    columns = {**row.columns, "prompt": fields.column(row, "input"), "completion": None}
    names = {**row.names, "prompt": row.called("input")}
    prompt = read_prompt_column(replace(row, columns=columns, names=names))
    yield Sample.of(row, *aligned(row, prompt, fields.answer(row, "target")))


def _is_no_chat(columns: Columns) -> bool:
    """A text may be about a list of messages; one that is nothing else was meant as a chat."""
    return not (isinstance(columns["text"], str) and is_written_chat(columns["text"]))


UNPAIRED = RowFormat(
    name="unpaired", kind="labels", columns=("prompt", "completion", "label"), read=read_unpaired
)
COMPLETION = RowFormat(
    name="prompt_completion",
    kind="examples",
    columns=("prompt", "completion"),
    read=read_prompt_completion,
)
TEXT_FORMATS = (
    RowFormat(
        name="input_target", kind="examples", columns=("input", "target"), read=read_input_target,
        fits=lambda columns: not {"prompt", "instruction"} & columns.keys(),
        prompt_columns=("input",),
    ),
    RowFormat(
        name="flan", kind="examples", columns=("inputs", "targets"), read=read_input_target,
        fits=lambda columns: not {"prompt", "instruction", "definition"} & columns.keys(),
        names={"input": "inputs", "target": "targets"}, prompt_columns=("inputs",),
    ),
    RowFormat(
        name="stepwise", kind="prompts", columns=("prompt", "completions", "labels"),
        read=read_prompt, reads_prompt=True,
        note="labels of single steps train a process reward model, which no job here does: the "
        "prompts alone are taken",
    ),
    RowFormat(
        name="prompt_text", kind="texts", columns=("prompt", "text"), fits=_is_no_chat,
        read=read_text, prompt_columns=("prompt", "text"),
        note="all of the column text is trained, and prompt is not; to train text as the answer to "
        "prompt set data.columns: {completion: text}",
    ),
    RowFormat(name="prompt", kind="prompts", columns=("prompt",), read=read_prompt),
    RowFormat(
        name="text", kind="texts", columns=("text",), read=read_text, prompt_columns=("text",),
        # Beside a role it is a message of a conversation.
        fits=lambda columns: "role" not in columns and _is_no_chat(columns),
    ),
    RowFormat(
        name="instruction", kind="prompts", columns=("instruction",), read=read_instruction,
        fits=lambda columns: isinstance(columns["instruction"], str), prompt_columns=ALPACA,
    ),
)  # fmt: skip
