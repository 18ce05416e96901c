from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.rewards.gsm8k import correct_answer, final_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("16 - 3 = 13 eggs.\n#### 18", "18"),
        ("#### 1\nno, wait\n####2", "2"),
        ("#### $1,234.50 per day, 7 days", "1234.50"),
        ("#### -5", "-5"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### \u22125", "-5"),
        ("####\n 42\nThanks! 7", "42"),
        ("#### forty-two, or 42", "42"),
        ("#### none", None),
        (r"so \boxed{42} of 50", "42"),
        (r"\boxed{1} and then \boxed{\text{about } 2}", "2"),
        (r"\boxed{\$1{,}000}", "1000"),
        (r"\boxed{1,\!000}", "1000"),
        (r"\boxed{-3}", "-3"),
        (r"\boxed{7", "7"),
        (r"\boxed{x}", None),
        ("#### 3 is \\boxed{4}", "3"),
        ("She sells 9 eggs and makes $18 a day.", "18"),
        ("The answer is 1,234,567.", "1234567"),
        ("It costs 0.50", "0.5"),
        ("half is .5", "0.5"),
        ("18.00 dollars", "18"),
        ("The temperature is -7 degrees", "-7"),
        ("10-5", "5"),
        ("(10)-5", "5"),
        ("- 5 apples", "5"),
        ("20%", "20"),
        ("between 3, 4", "4"),
        ("1,2345", "2345"),
        ("no idea", None),
        ("", None),
    ],
)
def test_the_final_number(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


@given(st.integers(-(10**15), 10**15), st.sampled_from(["{}", "{:,}", "{}.0", "{:,}.00"]))
def test_every_way_to_write_an_integer_is_read(number: int, form: str) -> None:
    written = form.format(number)
    for text in (f"#### {written}", rf"2+2 gives \boxed{{{written}}}", f"It is {written} miles."):
        assert final_number(text) == number


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    final_number(text)
    final_number("####" + text)
    final_number(r"\boxed{" + text)


@pytest.mark.parametrize("answer", ["work 3\n#### 4", "4", 4, 4.0])
def test_the_answer_is_a_solution_or_a_number(answer: Any) -> None:
    completions: list[Any] = ["#### 4", "#### 5", [{"role": "assistant", "content": "4"}], "four"]
    assert correct_answer(completions, answer=[answer] * 4, prompts=[]) == [1.0, 0.0, 1.0, 0.0]


def test_an_answer_without_a_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="`answer` must end in a number, got 'none'"):
        correct_answer(["#### 4"], answer=["none"])


def test_real_answers_agree_with_themselves_and_with_no_other(shared_data: Path) -> None:
    lines = (shared_data / "gsm8k/test.jsonl").read_text().splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    numbers = [int(answer.rpartition("####")[2].replace(",", "")) for answer in answers]
    assert len(answers) == 1_319
    assert correct_answer(answers, answer=answers) == [1.0] * 1_319
    for form in ("#### {}", r"\boxed{{{}}}", "The answer is ${:,}."):
        right = [form.format(number) for number in numbers]
        wrong = [form.format(number + 1) for number in numbers]
        assert correct_answer(right, answer=answers) == [1.0] * 1_319
        assert correct_answer(wrong, answer=answers) == [0.0] * 1_319
