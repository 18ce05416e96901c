r"""Verifier of mathematics: is the answer equal to the reference, however both are written?

Numbers are compared exactly, text by its letters, everything else by the library math-verify
(https://github.com/huggingface/Math-Verify) in processes of their own. What cannot be read with
certainty earns nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rlhf_ray.rewards.answers import last_marked, stated_answer
from rlhf_ray.rewards.batch import Messages, Scores, completion_text
from rlhf_ray.rewards.math_forms import compare_forms, read_form
from rlhf_ray.rewards.workers import Failure, Workers

logger = logging.getLogger(__name__)

_COMPARING = Workers(function="rlhf_ray.rewards.math_worker:is_same")
_READING = Workers(function="rlhf_ray.rewards.math_worker:is_readable")


# Not plain: its thread waits for processes, which have their limits, while other groups are scored.
async def equivalent(
    completions: list[str | Messages],
    answer: list[str | int | float | None],
    *,
    opens_reasoning: list[bool] | None = None,
    timeout_s: float = 5.0,
    **_: Any,
) -> Scores:
    r"""1 where a completion's answer is mathematically equal to the row's `answer`, else 0.

    A completion's answer stands in its last `\boxed{}`, behind `####` or "the answer is"; a
    reference may be a solution that marks its own. None where a row has no answer. An answer that
    takes longer than `timeout_s` of processor time, or too much memory, scores 0; how many did is
    logged.

    Raises:
        RunError: The processes cannot start.
    """
    pairs = [
        None
        if reference is None
        else (_reference(reference), stated_answer(completion_text(text), is_opened=is_opened))
        for reference, text, is_opened in zip(
            answer, completions, opens_reasoning or [False] * len(answer), strict=True
        )
    ]
    known = {pair: _known(*pair) for pair in pairs if pair is not None}
    open_pairs = [pair for pair, is_same in known.items() if is_same is None]
    answers = _COMPARING.ask(open_pairs, timeout_s=timeout_s)
    known |= {pair: answer is True for pair, answer in zip(open_pairs, answers, strict=True)}
    _log_failures(open_pairs, answers)
    return [None if pair is None else float(known[pair] or False) for pair in pairs]


def check_rows(
    answer: list[str | int | float | None], *, timeout_s: float = 5.0, **_: Any
) -> list[str | None]:
    """What is wrong with each row's `answer`, before anything starts: it cannot be read."""
    texts = ["" if reference is None else _reference(reference) for reference in answer]
    forms = [read_form(text) for text in texts]
    is_plain = [form is not None and (form.word or form.number is not None) for form in forms]
    asked = [text for text, plain in zip(texts, is_plain, strict=True) if text and not plain]
    readable = dict(zip(asked, _READING.ask(asked, timeout_s=timeout_s), strict=True))
    _READING.close()
    return [
        None
        if reference is None or plain or readable.get(text) is True
        else f"cannot be read as mathematics: `answer` is {str(reference)[:200]!r}"
        for reference, text, plain in zip(answer, texts, is_plain, strict=True)
    ]


equivalent.check_rows = check_rows  # type: ignore[attr-defined]


def _reference(answer: str | int | float) -> str:
    """What a reference marks as its answer, else all of it."""
    text = str(answer)
    marked = last_marked(text)
    return text if marked is None else marked.text


def _known(reference: str, answer: str) -> bool | None:
    """Whether they are the same, where that takes no algebra."""
    wanted, given = read_form(reference), read_form(answer)
    if wanted is None or given is None:
        return False
    return compare_forms(wanted, given)


def _log_failures(pairs: Sequence[tuple[str, str]], answers: Sequence[bool | Failure]) -> None:
    failures = [
        (answer, given)
        for (_, given), answer in zip(pairs, answers, strict=True)
        if isinstance(answer, Failure)
    ]
    if failures:
        kinds = Counter(failure.kind for failure, _ in failures)
        first, given = failures[0]
        logger.warning(
            "equivalent: %s of %d answers could not be compared and score 0; first %r: %s",
            ", ".join(f"{count} ({kind})" for kind, count in kinds.items()),
            len(pairs),
            given[:80],
            first.cause,
        )
