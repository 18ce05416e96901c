"""Which formats of rows there are, and which one a row's columns show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rlhf_ray.data import plain_formats as plain
from rlhf_ray.data import preference_formats as preference
from rlhf_ray.data.errors import RowError
from rlhf_ray.data.files import Row
from rlhf_ray.data.samples import Sample

Reader: TypeAlias = Callable[[Row], Iterator[Sample | RowError]]
Kind = Literal["prompts", "texts", "examples", "labels", "preferences"]


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """One format.

    Attributes:
        kind: What its rows are good for.
        columns: What it is recognised by, and what every row must have.
        read: The samples of a row.
        read_chat: The same where strings shall become chats; None where `read` serves.
        prompt_columns: What the prompt is made of; reward functions get all others.
    """

    name: str
    kind: Kind
    columns: tuple[str, ...]
    read: Reader
    read_chat: Reader | None = None
    prompt_columns: tuple[str, ...] = ("prompt",)

    def reader(self, *, chat: bool) -> Reader:
        """How to read a row, given `chat` of the configuration."""
        return self.read_chat if chat and self.read_chat else self.read


_ALPACA = ("instruction", "input", "system", "history")
_PAIR = ("chosen", "rejected")

ROW_FORMATS: Mapping[str, RowFormat] = {
    format_.name: format_
    for format_ in (
        RowFormat(
            name="ranking",
            kind="preferences",
            columns=("prompt", "answers"),
            read=preference.read_ranking,
        ),
        RowFormat(
            name="preference",
            kind="preferences",
            columns=("prompt", *_PAIR),
            read=preference.read_preference,
        ),
        RowFormat(
            name="sharegpt_pairs",
            kind="preferences",
            columns=("conversations", *_PAIR),
            read=preference.read_sharegpt_pairs,
            prompt_columns=("conversations",),
        ),
        RowFormat(
            name="alpaca_pairs",
            kind="preferences",
            columns=("instruction", *_PAIR),
            read=preference.read_alpaca_pairs,
            prompt_columns=_ALPACA,
        ),
        RowFormat(
            name="alpaca_outputs",
            kind="preferences",
            columns=("instruction", "output"),
            read=preference.read_alpaca_outputs,
            prompt_columns=_ALPACA,
        ),
        RowFormat(
            name="hh",
            kind="preferences",
            columns=_PAIR,
            read=preference.read_hh,
            read_chat=preference.read_hh_chat,
            prompt_columns=(),
        ),
        RowFormat(
            name="implicit_prompt",
            kind="preferences",
            columns=_PAIR,
            read=preference.read_implicit_prompt,
            prompt_columns=(),
        ),
        RowFormat(
            name="oasst_tree",
            kind="preferences",
            columns=("prompt",),
            read=preference.read_oasst_tree,
        ),
        RowFormat(
            name="unpaired",
            kind="labels",
            columns=("prompt", "completion", "label"),
            read=plain.read_unpaired,
        ),
        RowFormat(
            name="prompt_completion",
            kind="examples",
            columns=("prompt", "completion"),
            read=plain.read_prompt_completion,
        ),
        RowFormat(
            name="self_instruct",
            kind="examples",
            columns=("instruction", "instances"),
            read=plain.read_self_instruct,
            prompt_columns=("instruction", "instances"),
        ),
        RowFormat(
            name="alpaca",
            kind="examples",
            columns=("instruction", "output"),
            read=plain.read_alpaca,
            prompt_columns=_ALPACA,
        ),
        RowFormat(
            name="messages",
            kind="examples",
            columns=("messages",),
            read=plain.read_messages,
            prompt_columns=("messages",),
        ),
        RowFormat(
            name="sharegpt",
            kind="examples",
            columns=("conversations",),
            read=plain.read_sharegpt,
            prompt_columns=("conversations", "system"),
        ),
        RowFormat(
            name="input_target",
            kind="examples",
            columns=("input", "target"),
            read=plain.read_input_target,
            prompt_columns=("input",),
        ),
        RowFormat(name="prompt", kind="prompts", columns=("prompt",), read=plain.read_prompt),
        RowFormat(
            name="text",
            kind="texts",
            columns=("text",),
            read=plain.read_text,
            prompt_columns=("text",),
        ),
    )
}


def recognise(row: Row, *, for_prompts: bool) -> RowFormat:
    """The format that a row's columns show: the first of the table whose columns are all there.

    Args:
        row: The first of the data set.
        for_prompts: A column `prompt` is then the prompt, whatever stands beside it.

    Raises:
        RowError: None of them.
    """
    columns = row.columns
    if for_prompts and isinstance(columns.get("prompt"), str | list):
        return ROW_FORMATS["prompt"]
    for format_ in ROW_FORMATS.values():
        if all(name in columns for name in format_.columns) and _values_fit(format_.name, columns):
            return format_
    known = dict.fromkeys(" + ".join(format_.columns) for format_ in ROW_FORMATS.values())
    detail = f"{sorted(columns)}; name them by data.columns (our name: theirs) as one of "
    raise RowError(row.where, "no known format has these columns", detail + ", ".join(known))


def _values_fit(name: str, columns: Mapping[str, Any]) -> bool:
    """Where columns alone do not tell, what is in them does."""
    match name:
        case "hh":
            return all("\n\nAssistant:" in str(columns[side]) for side in _PAIR)
        case "oasst_tree":
            return isinstance(columns["prompt"], dict)
        case "alpaca_outputs":
            return isinstance(columns["output"], list)
        case _:
            return True
