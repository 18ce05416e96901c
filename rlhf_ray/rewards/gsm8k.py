r"""Verifier of grade-school maths: does the response end in the right number?

The data is GSM8K (Cobbe et al. 2021, arXiv 2110.14168), whose solutions end in `#### <number>`. A
policy that was not trained on that form may answer in `\boxed{}` or plain words.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from rlhf_ray.rewards.batch import Messages, completion_text

# A minus counts as a sign only where nothing stands before it that it could be subtracted from.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}])[-−])?\$?(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d*\.?\d+)"
)


def correct_answer(
    completions: list[str | Messages], answer: list[str | int | float], **_: Any
) -> list[float]:
    """1 where a completion's final number equals the row's `answer`, else 0.

    Raises:
        ValueError: An `answer` without a number.
    """
    scores = []
    for completion, reference in zip(completions, answer, strict=True):
        wanted = final_number(str(reference))
        if wanted is None:
            raise ValueError(f"the column `answer` must end in a number, got {reference!r:.200}")
        scores.append(float(final_number(completion_text(completion)) == wanted))
    return scores


def final_number(text: str) -> Decimal | None:
    r"""The number that a response gives as its answer, `None` without one.

    It is the first number after the last `####`; without that mark the first one in the last
    `\boxed{}`; without either, the last number of all. Thousands' commas, currency signs and units
    do not matter, nor does 42 being written 42.00.
    """
    _, marked, answer = text.rpartition("####")
    if marked:
        return _first(answer.lstrip().partition("\n")[0])
    boxed = _last_boxed(text)
    if boxed is not None:
        return _first(boxed.replace("{,}", ",").replace(r"\!", "").replace(r"\$", "$"))
    numbers = list(_NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else None


def _first(text: str) -> Decimal | None:
    match = _NUMBER.search(text)
    return _value(match) if match else None


def _value(match: re.Match[str]) -> Decimal:
    value = Decimal(match["digits"].replace(",", ""))
    return -value if match["sign"] else value


def _last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds, braces balanced; up to the end if it is not closed."""
    _, marked, rest = text.rpartition(r"\boxed{")
    if not marked:
        return None
    depth = 1
    for position, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[:position]
    return rest
