r"""Texts that hold the turns of a dialogue under marks of their own.

Anthropic writes `\n\nHuman: ...\n\nAssistant: ...`, HelpSteer `<extra_id_1>User`; other texts have
the marks of templates.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from rlhf_ray.data.formats import fields
from rlhf_ray.data.json_values import unfolded
from rlhf_ray.data.messages import ASSISTANTS, is_written_chat
from rlhf_ray.data.row import Row
from rlhf_ray.errors import RowError

ASSISTANT_TURN = "\n\nAssistant:"
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_HELPSTEER_SPEAKER = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}
# What opens an answer in a text that holds a conversation: HH's, Alpaca's, templates' own marks.
OPENING = re.compile(
    r"(?:^|\n)(?:### *)?(?:Assistant|ASSISTANT|Response|AI|Bot) *:"
    r"|<\|im_start\|>assistant\n|<\|assistant\|>\n?|\[/INST\]|<start_of_turn>model\n"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n|<\|Assistant\|>|<｜Assistant｜>"
)


def turns_of(row: Row, transcript: str) -> list[dict[str, Any]]:
    """A transcript's turns as messages; where one speaker goes on, that is one message.

    Raises:
        RowError: It is no transcript.
    """
    before, *parts = _SPEAKER.split(transcript)
    if before.strip() or not parts or parts[0] != "Human":
        detail = f"a transcript begins with '\\n\\nHuman:', got {transcript[:20]!r}"
        raise RowError(row.where, "not a transcript", detail)
    turns: list[dict[str, Any]] = []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        role = _ROLES[speaker]
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{text.strip()}"
        else:
            turns.append({"role": role, "content": text.strip()})
    return turns


def with_turns(row: Row) -> Row:
    """The row with a prompt that is a transcript as messages; the space before answers goes too."""
    prompt = row.columns.get("prompt")
    if not isinstance(prompt, str) or not prompt.startswith("\n\nHuman:"):
        return row
    if not prompt.rstrip().endswith(ASSISTANT_TURN):
        return row
    columns = {**row.columns, "prompt": turns_of(row, prompt)[:-1]}
    for name in ("chosen", "rejected", "completion"):
        if isinstance(columns.get(name), str):
            columns[name] = columns[name].strip()
    return replace(row, columns=columns)


def with_helpsteer_turns(row: Row) -> Row:
    """The row with the turns of HelpSteer's prompt as messages; one of one turn stays a text.

    Raises:
        RowError: The prompt is no text.
    """
    first, *parts = _HELPSTEER_SPEAKER.split(fields.string(row, "prompt"))
    if not parts:
        return row
    chat = [{"role": "user", "content": first}] + [
        {"role": _ROLES[speaker], "content": text}
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    return replace(row, columns={**row.columns, "prompt": chat})


def begins_a_conversation(value: Any) -> bool:
    """Whether a value is a conversation from its beginning, or a text with turns of an assistant.

    An answer alone is neither: what two answers begin with alike is not what was asked.
    """
    if isinstance(value, str):
        if not is_written_chat(value):
            return OPENING.search(value) is not None
        value = unfolded(value)
    first = value[0] if isinstance(value, list) and value else None
    speaker = first.get("role", first.get("from")) if isinstance(first, dict) else "assistant"
    return speaker not in ASSISTANTS
