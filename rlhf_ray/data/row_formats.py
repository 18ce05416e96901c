"""The formats of rows that there are, the first whose columns a row has being the one it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rlhf_ray.data import plain_formats as plain
from rlhf_ray.data import preference_formats as preference
from rlhf_ray.data.choice_formats import CHOICE_FORMATS
from rlhf_ray.data.grouping import BY_PROMPT, BY_TREE
from rlhf_ray.data.helpsteer import read_helpsteer
from rlhf_ray.data.parsed_rows import Columns
from rlhf_ray.data.row_format import RowFormat

_ALPACA = ("instruction", "input", "system", "history")
_PAIR = ("chosen", "rejected")


def _holds_whole(columns: Columns) -> bool:
    """Both answers are conversations from their beginning, or transcripts with turns."""
    return all(preference.begins_a_conversation(columns[side]) for side in _PAIR)


def _are_transcripts(columns: Columns) -> bool:
    return all("\n\nAssistant:" in str(columns[side]) for side in _PAIR)


def _lists_texts(name: str) -> Callable[[Columns], bool]:
    return lambda columns: _is_list(columns[name], str)


def _lists_objects(name: str, *keys: str) -> Callable[[Columns], bool]:
    return lambda columns: (
        _is_list(columns[name], dict) and all(set(keys) <= item.keys() for item in columns[name])
    )


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(i, kind) for i in value)


_FORMATS = (
    *CHOICE_FORMATS,
    # Rankings.
    RowFormat(
        name="ultrafeedback",
        kind="preferences",
        columns=("instruction", "completions"),
        fits=_lists_objects("completions", "response"),
        names={"prompt": "instruction", "answers": "completions"},
        read=preference.read_ranking,
        prompt_columns=("instruction",),
    ),
    RowFormat(
        name="helpsteer",
        kind="preferences",
        columns=("prompt", "response", "helpfulness"),
        group=BY_PROMPT,
        names={"answers": "response", "scores": "helpfulness"},
        read=read_helpsteer,
        reads_prompt=True,
    ),
    RowFormat(
        name="oasst_flat",
        kind="preferences",
        columns=("message_tree_id", "message_id", "parent_id", "role", "text"),
        group=BY_TREE,
        read=preference.read_oasst_tree,
    ),
    RowFormat(
        name="ranking",
        kind="preferences",
        columns=("prompt", "answers"),
        read=preference.read_ranking,
    ),
    RowFormat(
        name="oasst_tree",
        kind="preferences",
        columns=("prompt",),
        fits=lambda columns: isinstance(columns["prompt"], dict),
        read=preference.read_oasst_tree,
    ),
    # Pairs.
    RowFormat(
        name="preference",
        kind="preferences",
        columns=("prompt", *_PAIR),
        read=preference.read_preference,
    ),
    RowFormat(
        name="openai_preference",
        kind="preferences",
        columns=("input", "preferred_output", "non_preferred_output"),
        names={"prompt": "input.messages", "tools": "input.tools", "chosen": "preferred_output",
               "rejected": "non_preferred_output"},
        read=preference.read_preference,
        prompt_columns=("input",),
    ),
    RowFormat(
        name="message_pairs",
        kind="preferences",
        columns=("chosen_messages", "rejected_messages"),
        names={"chosen": "chosen_messages", "rejected": "rejected_messages"},
        read=preference.read_implicit_prompt,
        prompt_columns=(),
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
        fits=lambda columns: isinstance(columns["output"], list),
        read=preference.read_alpaca_outputs,
        prompt_columns=_ALPACA,
    ),
    RowFormat(
        name="hh",
        kind="preferences",
        columns=_PAIR,
        fits=_are_transcripts,
        read=preference.read_hh,
        read_chat=preference.read_hh_chat,
        prompt_columns=(),
    ),
    RowFormat(
        name="implicit_prompt",
        kind="preferences",
        columns=_PAIR,
        fits=_holds_whole,
        read=preference.read_implicit_prompt,
        prompt_columns=(),
    ),
    RowFormat(
        name="common_beginning",
        kind="preferences",
        columns=_PAIR,
        fits=lambda columns: False,  # only where the configuration says so
        read=preference.read_common_beginning,
        prompt_columns=(),
    ),
    # Labels.
    RowFormat(
        name="unpaired",
        kind="labels",
        columns=("prompt", "completion", "label"),
        read=plain.read_unpaired,
    ),
    RowFormat(
        name="labelled_messages",
        kind="labels",
        columns=("messages", "label"),
        read=plain.read_labelled_messages,
        prompt_columns=("messages",),
    ),
    RowFormat(
        name="labelled_sharegpt",
        kind="labels",
        columns=("conversations", "label"),
        names={"messages": "conversations"},
        read=plain.read_labelled_messages,
        prompt_columns=("conversations",),
    ),
    # Examples.
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
        name="lima",
        kind="examples",
        columns=("conversations",),
        fits=_lists_texts("conversations"),
        names={"turns": "conversations"},
        read=plain.read_turns,
        prompt_columns=("conversations",),
    ),
    RowFormat(
        name="sharegpt",
        kind="examples",
        columns=("conversations",),
        read=plain.read_sharegpt,
        prompt_columns=("conversations", "system"),
    ),
    RowFormat(
        name="ultrachat",
        kind="examples",
        columns=("data",),
        fits=_lists_texts("data"),
        names={"turns": "data"},
        read=plain.read_turns,
        prompt_columns=("data",),
    ),
    RowFormat(
        name="capybara",
        kind="examples",
        columns=("conversation",),
        fits=_lists_objects("conversation", "input", "output"),
        read=plain.read_exchanges,
        prompt_columns=("conversation",),
    ),
    RowFormat(
        name="input_target",
        kind="examples",
        columns=("input", "target"),
        read=plain.read_input_target,
        prompt_columns=("input",),
    ),
    # Prompts and texts.
    RowFormat(
        name="stepwise",
        kind="prompts",
        columns=("prompt", "completions", "labels"),
        read=plain.read_prompt,
        reads_prompt=True,
        note="labels of single steps train a process reward model, which no job here does: the "
        "prompts alone are taken",
    ),
    RowFormat(
        name="prompt_text",
        kind="texts",
        columns=("prompt", "text"),
        read=plain.read_text,
        prompt_columns=("prompt", "text"),
        note="all of the column text is trained, and prompt is not; to train text as the answer to "
        "prompt set data.columns: {completion: text}",
    ),
    RowFormat(name="prompt", kind="prompts", columns=("prompt",), read=plain.read_prompt),
    RowFormat(
        name="text",
        kind="texts",
        columns=("text",),
        read=plain.read_text,
        prompt_columns=("text",),
    ),
)  # fmt: skip

# The first whose columns a row has is taken.
ROW_FORMATS: Mapping[str, RowFormat] = {format_.name: format_ for format_ in _FORMATS}
