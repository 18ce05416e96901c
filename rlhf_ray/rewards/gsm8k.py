r"""Verifier of grade-school maths: does the response end in the right number?

The data is GSM8K (Cobbe et al. 2021, arXiv 2110.14168), whose solutions end in `#### <number>`. A
policy that was not trained on that form may answer in `\boxed{}` or plain words. What cannot be
read with certainty as one number earns nothing.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from rlhf_ray.rewards.answers import answer_part, is_recanted, last_marked
from rlhf_ray.rewards.batch import Messages, Scores, completion_text
from rlhf_ray.rewards.numbers import whole_number
from rlhf_ray.rewards.prose import number_in_words

# GSM8K's own notes of what a calculator said: 9 * 2 = <<9*2=18>>18.
_CALCULATION = re.compile(r"<<[^<>\n]*>>")


def correct_answer(
    completions: list[str | Messages],
    answer: list[str | int | float | None],
    *,
    opens_reasoning: list[bool] | None = None,
    **_: Any,
) -> Scores:
    """1 where a completion's final number equals the row's `answer`, else 0.

    None where a row has no answer.

    Raises:
        ValueError: An `answer` that is no number.
    """
    return [
        None
        if reference is None
        else float(
            final_number(completion_text(completion), is_opened=is_opened)
            == reference_number(reference)
        )
        for completion, reference, is_opened in zip(
            completions, answer, opens_reasoning or [False] * len(answer), strict=True
        )
    ]


def reference_number(answer: str | int | float) -> Fraction:
    r"""The number of a reference: all of it, or what stands after its `####` or in `\boxed{}`.

    Raises:
        ValueError: There is none.
    """
    text = str(answer)
    marked = last_marked(text)
    number = whole_number(marked.text if marked else text)
    if number is None:
        raise ValueError(
            "the column `answer` must be a number, or end in one after #### or in \\boxed{}, "
            f"got {answer!r:.200}"
        )
    return number


def check_rows(answer: list[str | int | float | None], **_: Any) -> list[str | None]:
    """What is wrong with each row's `answer`, before anything starts."""
    return [None if reference is None else _fault(reference) for reference in answer]


correct_answer.check_rows = check_rows  # type: ignore[attr-defined]


def _fault(reference: str | int | float) -> str | None:
    try:
        reference_number(reference)
    except ValueError as error:
        return str(error)
    return None


def final_number(text: str, *, is_opened: bool = False) -> Fraction | None:
    r"""The number that a response gives as its answer, `None` without one.

    After its reasoning (`<think>`), it is all of the text behind the last `####` that is no
    heading, or in the last `\boxed{}`, whichever comes last; without either, what follows "the
    answer is", else the last number of all. Thousands' commas, currencies and units do not matter,
    nor does 42 being written 42.00. A text with more than one number, a term or an approximation
    gives none. `is_opened` as in `answer_part`.
    """
    text = _CALCULATION.sub("", answer_part(text, is_opened=is_opened))
    marked = last_marked(text)
    if marked is not None:
        return None if is_recanted(text[marked.end :]) else whole_number(marked.text)
    return number_in_words(text)
