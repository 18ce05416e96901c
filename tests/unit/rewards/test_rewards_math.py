from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from rlhf_ray.rewards.answers import stated_answer
from rlhf_ray.rewards.math import check_rows, equivalent


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}} of it", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed {\{1, 2\}}", r"\{1, 2\}"),
        (r"<think>\boxed{1}</think>\boxed{2}", "2"),
        (r"<think>\boxed{1}", ""),
        (r"\boxed{\frac{1}{2", ""),
        (r"\boxed{1}. Wait, that is wrong.", ""),
        (r"#### \frac{1}{2}", r"\frac{1}{2}"),
        ("The answer is $x=1$ or $x=2$.", "x=1, x=2"),
        ("The answer is $5$ cm.", "5 cm"),
        (r"**Answer:** $\frac12$", r"\frac12"),
        (r"final answer: \(x^2\), since ...", "x^2"),
        ("Answer:\n$$x^2$$", "x^2"),
        ("The answer is 3.5.", "3.5"),
        ("x^2", "x^2"),
        ("one\ntwo", ""),
        ("", ""),
    ],
)
def test_the_answer_that_a_response_states(text: str, answer: str) -> None:
    assert stated_answer(text) == answer


def test_completions_are_scored_and_an_endless_one_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chat = [{"role": "assistant", "content": r"It is \boxed{2\sqrt{2}}."}]
    completions: list[Any] = [chat, r"\boxed{9^{9^{9^{9}}}}", "no idea", r"\boxed{0.5}", "4"]
    answers: list[Any] = [r"\sqrt{8}", r"\sqrt{3}", r"\sqrt{8}", r"so \boxed{\frac12}", None]
    with caplog.at_level(logging.WARNING):
        scores = asyncio.run(equivalent(completions, answer=answers, timeout_s=1.0, prompts=[]))
    assert scores == [1.0, 0.0, 0.0, 1.0, None]
    assert "1 (timeout) of 2 answers could not be compared and score 0" in caplog.text


def test_numbers_and_texts_take_no_process() -> None:
    began_s = time.monotonic()
    completions: list[Any] = [rf"\boxed{{{number}}}" for number in range(1000)]
    answers: list[Any] = [str(number) for number in range(1000)]
    assert asyncio.run(equivalent(completions, answer=answers)) == [1.0] * 1000
    assert time.monotonic() - began_s < 5


def test_references_that_cannot_be_read_are_found() -> None:
    answers: list[Any] = ["1/2", r"\frac{1", "x^2", "", None, "((", r"(1, \infty)", "yes", 3]
    found = check_rows(answer=answers)
    assert [fault is None for fault in found] == [True, False, True, False] + [True, False] + [
        True
    ] * 3
    assert found[1] == r"cannot be read as mathematics: `answer` is '\\frac{1'"
