r"""Texts that hold a dialogue as Anthropic writes it: `\n\nHuman: ...\n\nAssistant: ...`."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from rlhf_ray.data.errors import RowError
from rlhf_ray.data.row import Row

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_BEGIN, _OPENED = "\n\nHuman:", "\n\nAssistant:"
_ANSWERS = ("chosen", "rejected", "completion")


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
    if not isinstance(prompt, str) or not prompt.startswith(_BEGIN):
        return row
    if not prompt.rstrip().endswith(_OPENED):
        return row
    columns = {**row.columns, "prompt": turns_of(row, prompt)[:-1]}
    for name in _ANSWERS:
        if isinstance(columns.get(name), str):
            columns[name] = columns[name].strip()
    return replace(row, columns=columns)
