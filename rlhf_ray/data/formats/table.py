"""The formats of rows that there are, the first whose columns a row has being the one it shows."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_ray.data.formats import pairs as preference
from rlhf_ray.data.formats import plain
from rlhf_ray.data.formats import rankings as ranking
from rlhf_ray.data.formats import trees as tree
from rlhf_ray.data.formats.arena import ARENA_FORMATS
from rlhf_ray.data.formats.choices import CHOICE_FORMATS
from rlhf_ray.data.formats.example_formats import ALPACA, EXAMPLE_FORMATS, lists_objects
from rlhf_ray.data.formats.grouping import BY_PROMPT, BY_TREE
from rlhf_ray.data.formats.helpsteer import read_helpsteer
from rlhf_ray.data.formats.row_format import RowFormat
from rlhf_ray.data.json_values import unfolded
from rlhf_ray.data.messages import is_written_chat
from rlhf_ray.data.row import Columns

_PAIR = ("chosen", "rejected")


def _holds_whole(columns: Columns) -> bool:
    """Both answers are conversations from their beginning, or transcripts with turns."""
    return all(preference.begins_a_conversation(columns[side]) for side in _PAIR)


def _are_transcripts(columns: Columns) -> bool:
    return all("\n\nAssistant:" in str(columns[side]) for side in _PAIR)


def _is_tree(columns: Columns) -> bool:
    root = unfolded(columns["prompt"])
    is_object = root is columns["prompt"]
    return isinstance(root, dict) and (is_object or {"text", "replies"} <= root.keys())


def _is_no_chat(columns: Columns) -> bool:
    """A text may be about a list of messages; one that is nothing else was meant as a chat."""
    return not (isinstance(columns["text"], str) and is_written_chat(columns["text"]))


_FORMATS = (
    *ARENA_FORMATS,
    *CHOICE_FORMATS,
    # Rankings.
    RowFormat(
        name="ultrafeedback",
        kind="preferences",
        columns=("instruction", "completions"),
        fits=lambda columns: (
            unfolded(columns["completions"]) == []
            or lists_objects("completions", "response")(columns)
        ),
        names={"prompt": "instruction", "answers": "completions"},
        read=ranking.read_scored_ranking,
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
        name="stack_exchange",
        kind="preferences",
        columns=("question", "answers"),
        fits=lists_objects("answers", "text", "pm_score"),
        names={"prompt": "question"},
        read=ranking.read_scored_ranking,
        prompt_columns=("question",),
    ),
    RowFormat(
        name="oasst_message",
        kind="preferences",
        columns=("message_id", "role", "text", "replies"),
        read=tree.read_oasst_message,
    ),
    RowFormat(
        name="oasst_flat",
        kind="preferences",
        columns=("message_tree_id", "message_id", "parent_id", "role", "text"),
        group=BY_TREE,
        read=tree.read_oasst_tree,
    ),
    RowFormat(
        name="ranking",
        kind="preferences",
        columns=("prompt", "answers"),
        read=ranking.read_ranking,
    ),
    RowFormat(
        name="oasst_tree",
        kind="preferences",
        columns=("prompt",),
        fits=_is_tree,
        read=tree.read_oasst_tree,
        reads_prompt=True,
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
        fits=lambda columns: isinstance(unfolded(columns["input"]), dict),
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
        prompt_columns=ALPACA,
    ),
    RowFormat(
        name="alpaca_outputs",
        kind="preferences",
        columns=("instruction", "output"),
        fits=lambda columns: isinstance(columns["output"], list) and len(columns["output"]) == 2,
        read=preference.read_alpaca_outputs,
        prompt_columns=ALPACA,
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
    *EXAMPLE_FORMATS,
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
        fits=_is_no_chat,
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
        # Beside a role it is a message of a conversation.
        fits=lambda columns: "role" not in columns and _is_no_chat(columns),
        read=plain.read_text,
        prompt_columns=("text",),
    ),
    RowFormat(
        name="instruction",
        kind="prompts",
        columns=("instruction",),
        fits=lambda columns: isinstance(columns["instruction"], str),
        read=plain.read_instruction,
        prompt_columns=ALPACA,
    ),
)  # fmt: skip

# The first whose columns a row has is taken.
ROW_FORMATS: Mapping[str, RowFormat] = {format_.name: format_ for format_ in _FORMATS}
