"""Labelled answers, each with the answer to another prompt, from which KTO estimates the KL."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlhf_ray.data.rows.rows import Numbers, Rows
from rlhf_ray.types import LabelledAnswer


class LinkedRows(Rows[LabelledAnswer]):
    """Each row with the answer of the next row that has another prompt, around the end.

    That answer is cut where it and the prompt would be longer than `max_length`. Where all rows
    have one prompt, a row keeps its own.
    """

    def __init__(self, rows: Rows[LabelledAnswer], *, max_length: int) -> None:
        """Link `rows`, none of which has another's answer yet."""
        self.rows, self.max_length = rows, max_length
        self.others = next_prompts(rows.numbers("prompt_key"))

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, row: int) -> LabelledAnswer:
        """Made of the two rows."""
        own, other = self.rows.record(row), self.rows.record(int(self.others[row]))
        room = self.max_length - len(own.prompt_ids_T)
        return replace(own, answer_ids_K=(own.answer_ids_K[0], other.answer_ids_K[0][:room]))

    def numbers(self, name: str) -> Numbers:
        """Lengths with both answers; a digest is that of the row alone: its order tells the other.

        The other's tokens are a row's own as well, so that the largest is among those.
        """
        own = self.rows.numbers(name)
        if name != "length":
            return own
        prompt = self.rows.numbers("prompt_length")
        with_other = prompt + (own - prompt)[self.others]
        lengths: Numbers = np.maximum(own, np.minimum(with_other, self.max_length))
        return lengths


def next_prompts(prompt_keys: Numbers) -> Numbers:
    """For each row the next one, around the end, whose prompt is another; itself where none is."""
    num_rows = len(prompt_keys)
    begins = np.flatnonzero(prompt_keys != np.roll(prompt_keys, 1))
    if not len(begins):
        return np.arange(num_rows)
    # The first row of a run of equal prompts that begins behind each row.
    following = np.searchsorted(begins, np.arange(num_rows), side="right")
    return begins[following % len(begins)]
