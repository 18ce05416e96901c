"""HelpSteer's prompts, which write the turns of a chat into one text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from rlhf_ray.data.errors import RowError
from rlhf_ray.data.formats import fields
from rlhf_ray.data.formats.rankings import read_ranking
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.data.row import Row

_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_ROLES = {"User": "user", "Assistant": "assistant"}


def read_helpsteer(row: Row) -> Iterator[Sample | RowError]:
    """`prompt` and its `answers` with `scores`."""
    yield from read_ranking(with_turns(row))


def with_turns(row: Row) -> Row:
    """The row with the turns of its prompt as messages; a prompt of one turn stays a text.

    Raises:
        RowError: The prompt is no text.
    """
    first, *parts = _TURN.split(fields.string(row, "prompt"))
    if not parts:
        return row
    chat = [{"role": "user", "content": first}] + [
        {"role": _ROLES[speaker], "content": text}
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    return replace(row, columns={**row.columns, "prompt": chat})
