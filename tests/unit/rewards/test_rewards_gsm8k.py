from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.config.rewards import RewardFunctionConfig
from rlhf_ray.rewards.answers import stated_answer
from rlhf_ray.rewards.batch import ScoringBatch
from rlhf_ray.rewards.functions import load_functions
from rlhf_ray.rewards.gsm8k import correct_answer, final_number, reference_number

# Every text with what it says; None where it may not be paid, whatever the reference.
MARKED: list[tuple[str, str | int | None]] = [
    ("16 - 3 = 13 eggs.\n#### 18", 18),
    ("#### 1\nno, wait\n####2", 2),
    ("#### 42 #### 43", 43),
    ("#### $1,234.50 per day", "1234.50"),
    ("#### $1,234.50 per day, 7 days", None),
    ("#### -5", -5),
    ("#### -$5", -5),
    ("#### $-5", -5),
    ("#### \u22125", -5),
    ("#### \u20135", -5),
    ("#### - 5", -5),
    ("#### +42", 42),
    ("####\n 42\nThanks! 7", 42),
    ("#### 42.", 42),
    ("#### 42\n", 42),
    ("#### 42<|im_end|>", 42),
    ("#### 42</s>", 42),
    ("#### **42**", 42),
    ("**#### 42**", 42),
    ("#### `42`", 42),
    ("> #### 42", 42),
    ("#### 42 apples", 42),
    ("#### 42 km/h", 42),
    ("#### $42/hour", 42),
    ("#### 42 a day", 42),
    ("#### 42 months", 42),
    ("#### 42%", 42),
    ("#### 42 percent", 42),
    ("#### \u20ac42", 42),
    ("#### 42 USD", 42),
    ("#### Rs. 42", 42),
    ("#### x = 42", 42),
    ("#### 6 * 7 = 42", 42),
    ("#### The answer is 42", 42),
    ("#### 1e3", 1000),
    ("#### 1.5e-3", "0.0015"),
    ("#### 10^3", 1000),
    ("#### 1 000", 1000),
    ("#### 1 234 567", 1234567),
    ("#### 1\u202f000", 1000),
    ("#### 1'000", 1000),
    ("#### 1.234,50", "1234.5"),
    ("#### 1.234.567", 1234567),
    ("#### 1,00,000", 100000),
    ("#### 2.5 million", 2500000),
    ("#### \uff14\uff12", 42),
    ("#### \u0664\u0662", 42),
    ("#### 1/2", "1/2"),
    ("#### 1 1/2", "3/2"),
    ("#### 1\u00bd", "3/2"),
    ("#### 007", 7),
    ("#### -0", 0),
    ("#### 42\n#### Explanation\nIt is 6 times 7.", 42),
    ("#### 41\nWait, no. #### 42", 42),
    ("<think>#### 41</think>#### 42", 42),
    ("<think>\nso #### 42", None),
    ("#### 41\nWait, it is 42.", None),
    ("#### forty-two, or 42", None),
    ("#### none", None),
    ("####", None),
    ("#### 42 or 43", None),
    ("#### 42, 43", None),
    ("#### 42 and a half", None),
    ("#### about 42", None),
    ("#### not 42", None),
    ("#### ~42", None),
    ("#### 42-43", None),
    ("#### 42 - 1", None),
    ("#### 42+1", None),
    ("#### 42+", None),
    ("#### 41 = 42", None),
    ("#### x is not = 42", None),
    ("#### at least 42", None),
    ("#### 42 or more", None),
    ("#### 42ish", None),
    ("#### 1 00", None),
    ("#### ++5", None),
    ("#### 42x", None),
    ("#### 42k", None),
    ("#### 42!", None),
    ("#### 42...", None),
    ("#### 4\u00b2", None),
    ("#### 3 dozen", None),
    ("#### 2 hours 30 minutes", None),
    ("#### 12:30", None),
    ("#### 0x2A", None),
    ("#### 1,2345", None),
    ("#### 3,5", None),
    ("#### 1/0", None),
    ("#### \u221e", None),
    ("#### inf", None),
    ("#### nan", None),
    ("#### 1e999999999", None),
    ("#### 3 is \\boxed{4}", None),
    ("#### 7 \u00d7 10\u2074", 70000),
    ("#### 5 m\u00b2", 5),
    ("#### 5\u00a2", 5),
    ("#### 5 \u2705", 5),
    ("#### 42<\uff5cend\u2581of\u2581sentence\uff5c>", 42),
    ("#### 18 M", None),
    ("#### 18 lakh", None),
    ("#### 18 gross", None),
    ("#### 18 at most", None),
    ("#### 18\nOn second thought, 20.", None),
    ("#### 18\nNo. It's 20.", None),
    ("#### 18\nLet me double-check: 20", None),
]
HEADINGS: list[tuple[str, str | int | None]] = [
    ("#### Step 2: add\nThe total is 42.", 42),
    ("#### 2. Add the numbers\nThe total is 7", 7),
    ("#### 2 Ways\nto do it", None),
    ("#### Step 1\n5\n#### Answer\n42", 42),
    ("### Answer\n42", 42),
    ("##### 42\nso 7", 7),
    ("#### Final answer\n$\\boxed{42}$", 42),
]
BOXED: list[tuple[str, str | int | None]] = [
    (r"so \boxed{42} of 50", 42),
    (r"\boxed {42}", 42),
    (r"\fbox{42}", 42),
    (r"\boxed{\boxed{42}}", 42),
    (r"\boxed{41} or rather \boxed{42}", 42),
    (r"\boxed{\$1{,}000}", 1000),
    (r"\boxed{1,\!000}", 1000),
    (r"\boxed{1\,000}", 1000),
    (r"\boxed{-3}", -3),
    (r"\boxed{42\text{ cm}^2}", 42),
    (r"\boxed{42\%}", 42),
    (r"\boxed{42^\circ}", 42),
    (r"\boxed{\text{42 apples}}", 42),
    (r"\boxed{\mathbf{42}}", 42),
    (r"\boxed{x_1 = 5}", 5),
    (r"\boxed{\frac12}", "1/2"),
    (r"\boxed{-\dfrac{1}{2}}", "-1/2"),
    (r"\boxed{1\frac{1}{2}}", "3/2"),
    (r"\boxed{1.5 \times 10^{3}}", 1500),
    (r"#### $\boxed{42}$", 42),
    (r"\boxed{41} so #### 42", 42),
    ("#### 41\n\\boxed{42}", 42),
    (r"<think>\boxed{41}</think>\boxed{42}", 42),
    (r"\boxed{1} and then \boxed{\text{about } 2}", None),
    (r"\boxed{7", None),
    (r"\boxed{}", None),
    (r"\boxed{x}", None),
    (r"\boxed{x_1}", None),
    (r"\boxed{x=5, y=7}", None),
    (r"\boxed{y - 3 = 42}", None),
    (r"\boxed{\sqrt{4}}", None),
    (r"\boxed{42\pi}", None),
    (r"\boxed{2^{10}}", None),
    (r"\boxed{\pm 3}", None),
    (r"\boxed{x \neq 42}", None),
    (r"\boxed{\approx 42}", None),
    (r"\boxed{\{42\}}", None),
    (r"\boxed{42 \text{ or } 43}", None),
    (r"**\boxed{42}**", 42),
    (r"$\text{Total: }\boxed{42}$.", 42),
    (r"\boxed{\large 42}", 42),
    ("\\boxed{42}\n\nFinal answer: \\boxed{42}", 42),
    (r"\boxed{42} and \boxed{43}", None),
    (r"$\boxed{42}$ or $\boxed{43}$", None),
    (r"\boxed{42}^2", None),
    (r"-\boxed{42}", None),
    (r"2\boxed{42}", None),
    (r"\boxed{42}00", None),
    (r"\boxed{42} million", None),
    (r"\frac{1}{\boxed{42}}", None),
    (r"\sqrt{\boxed{42}}", None),
    ("> \\boxed{42}", 42),
    (r"\approx\boxed{42}", None),
    (r"x < \boxed{42}", None),
    (r"about $\boxed{42}$", None),
    (r"\boxed{42} or 43", None),
    (r"\boxed{42} and a half", None),
    (r"\boxed{5} hours and \boxed{30} minutes", None),
    (r"\boxed{5} hours 30 minutes", None),
]
PLAIN: list[tuple[str, str | int | None]] = [
    ("She sells 9 eggs and makes $18 a day.", 18),
    ("She makes 9 * 2 = $<<9*2=18>>18 every day", 18),
    ("The answer is 1,234,567.", 1234567),
    ("The answer is 42, since 6 times 7 is 42.", 42),
    ("The answer is 42. That is 6 times 7.", 42),
    ("The answer is 42 apples (not 43).", 42),
    ("The answer is that she has 42 eggs.", 42),
    ("The answer is 6 * 7 = 42.", 42),
    ("The answer is 41. Wait, actually it is 42.", 42),
    ("**Answer:** 42", 42),
    ("**Answer: 42**", 42),
    ("Answer:\n42", 42),
    ("Total: 42", 42),
    ("It adds up to 42", 42),
    ("It costs 0.50", "0.5"),
    ("half is .5", "0.5"),
    ("18.00 dollars", 18),
    ("The temperature is -7 degrees", -7),
    ("Profit: -$5", -5),
    ("- 5 apples", 5),
    ("20%", 20),
    ("It is 1/2.", "1/2"),
    (r"It is \frac{1}{2}", "1/2"),
    ("x = 42", 42),
    ("The total is 42.\n3. Done", 42),
    ("3 dogs and 4 cats", None),
    ("The answer is 3 dogs and 4 cats", None),
    ("The answer is 42 or 43", None),
    ("The answer is between 41 and 43", None),
    ("The answer is not 42", None),
    ("So it is not 42.", None),
    ("The answer isn't 42", None),
    ("The answer cannot be 42", None),
    ("It is not 41 but 42.", 42),
    ("Jim spends $5 on 3 books, so the total is $15.", 15),
    ("<answer>42</answer>", 42),
    ("<think>41</think>42", 42),
    ("He has five (5) apples", 5),
    ("about 42", None),
    ("less than 42", None),
    ("He went from 5 to 10", None),
    ("10-5", None),
    ("(10)-5", None),
    ("6 x 7", None),
    ("So 2x = 84", None),
    ("between 3, 4", None),
    ("1,2345", None),
    (r"It is \sqrt{4}", None),
    ("x_1", None),
    ("x^2", None),
    ("H2O", None),
    ("at 3:30", None),
    ("no idea", None),
    ("It adds up to 18", 18),
    ("a total of 18", 18),
    ("The answer is 15 (10 + 5).", 15),
    ("It is up to 18", None),
    ("half of 18", None),
    ("the square root of 18", None),
    ("18 out of 20", None),
    ("twice 18", None),
    ("minus 18", None),
    ("3 plus 6", None),
    ("3 divided by 6", None),
    ("3 \u00f7 6", None),
    ("17 & 18", None),
    ("over 18", None),
    ("maybe 18", None),
    ("Is it 18?", None),
    ("So the answer is:\n$$18$$", 18),
    ("9 eggs \u00d7 $2 per egg = $18 per day", 18),
    ("1. 12 eggs\n2. 3 eggs\n\n15 eggs in total", 15),
    ("The area is 18 in\u00b2", 18),
    ("==> 18", 18),
    ("2 hours 18 minutes", None),
    ("5 feet and 18 inches", None),
    ("17 versus 18", None),
    ("17~18", None),
    ("as many as 18", None),
    ("close to 18", None),
    ("instead of 18", None),
    ("2**18", None),
    ("5 with remainder 18", None),
    ("18 degrees below zero", None),
    ("5% of 18", None),
    ("an area of 18 m^2", 18),
    ("less than or equal to 18", None),
    ("approx. 18", None),
    ("18 at most", None),
    ("I estimate 18", None),
    ("18 if x = y", None),
    ("2(18)", None),
    ("f(18)", None),
    ("2 + (18)", None),
    ("x != 18", None),
    ("3(x) = 18", None),
    ("-x = 18", None),
    ("18+", None),
    ("18, give or take", None),
    ("18 is wrong", None),
    ("18 cannot be right", None),
    ("The answer is 18 (maybe)", None),
    ("The answer is 18, possibly 19", None),
    ("The answer is x = 18 or x = 19", None),
    ("The answer is 2x = 18", None),
    ("The answer is 18\u03c0", None),
    ("The answer is log(18)", None),
    ("The wrong answer is 18.", None),
    ("An incorrect answer would be 18", None),
    ("If the answer is 18, x is 20", None),
    ("The answer is 18. It isn't.", None),
    ("The answer is 18.\nThat is false.", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "number"), [*MARKED, *HEADINGS, *BOXED, *PLAIN])
def test_the_final_number(text: str, number: str | int | None) -> None:
    assert final_number(text) == (None if number is None else Fraction(number))


def test_numbers_are_compared_beyond_floats() -> None:
    great = 2**53
    completions: list[Any] = [
        f"#### {great + 1}",
        f"#### {great}",
        "#### 0.1",
        "#### 0.10000000000000001",
    ]
    answers = [great, great, "0.1", "0.1"]
    assert correct_answer(completions, answer=answers) == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "text",
    [
        "1" * 20_000 + ".1.2.3",
        r"\text{" * 3000 + "1" + "}" * 3000,
        r"\boxed{" * 5000,
        "#### " * 5000,
        "The answer is " + " " * 20_000 + "x",
        "1 1/" * 3000,
        "*a " * 6000,
        "a " * 9000 + "42",
        r"\boxed{4}" + " " * 20_000 + r"\boxed{2}",
        r"\boxed{42}" + " $" * 10_000,
        "42" + " " * 20_000,
        "The answer is 42 (" + "1 + " * 5000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    began_s = time.monotonic()
    for marked in (text, f"#### {text}", rf"\boxed{{{text}}}"):
        final_number(marked)
        stated_answer(marked)
    assert time.monotonic() - began_s < 5


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


@pytest.mark.parametrize("answer", ["none", "", "3 or 4", "it is 4", "#### x", float("nan")])
def test_an_answer_that_is_no_number_is_an_error(answer: Any) -> None:
    with pytest.raises(ValueError, match=r"`answer` must be a number, or end in one after ####"):
        correct_answer(["#### 4"], answer=[answer])


def test_a_row_without_an_answer_is_left_to_other_rewards() -> None:
    assert correct_answer(["#### 4", "#### 4"], answer=[None, 4]) == [None, 1.0]


@pytest.mark.parametrize("path", ["gsm8k:correct_answer", "math:equivalent"])
def test_reasoning_that_the_prompt_has_opened_is_no_answer(
    make_batch: Callable[..., ScoringBatch], path: str
) -> None:
    [function] = load_functions([RewardFunctionConfig(path=f"rlhf_ray.rewards.{path}")])
    batch = make_batch("so #### 42", "6 * 7 </think> #### 42", "#### 42", answer=[42] * 3)
    assert asyncio.run(function.score(batch, timeout_s=60)) == [1.0, 1.0, 1.0]
    opened = replace(batch, opens_reasoning_B=[True] * 3)
    assert asyncio.run(function.score(opened, timeout_s=60)) == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("answer", [r"\boxed{\frac{1}{2}}", "0.5", 0.5, "so\n#### .50", r"\frac12"])
def test_references_may_be_marked(answer: Any) -> None:
    assert reference_number(answer) == Fraction(1, 2)


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
