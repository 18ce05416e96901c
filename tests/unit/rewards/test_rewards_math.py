from __future__ import annotations

import logging
import time
from typing import Any

import pytest

from rlhf_ray.rewards import math_worker
from rlhf_ray.rewards.answers import stated_answer
from rlhf_ray.rewards.math import check_rows, equivalent

# References, each with an answer that is the same.
RIGHT = [
    ("1/2", r"\frac{1}{2}"),
    (r"\frac12", "0.5"),
    (r"\frac12", r"\dfrac{1}{2}"),
    (r"\frac12", r"\frac{2}{4}"),
    (r"\frac12", r"50\%"),
    (r"50\%", "50"),
    (r"50\%", "0.5"),
    ("50", r"50\%"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"2\sqrt2", r"\sqrt 8"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\{1,2\}", "1, 2"),
    ("1,2", "2,1"),
    ("1,2", r"1 \text{ and } 2"),
    ("1,2", r"x=1 \text{ or } x=2"),
    ("x=1,x=2", "1,2"),
    ("(1,2)", r"\left(1,2\right)"),
    ("(1,2)", "( 1, 2 )"),
    ("(1,2]", r"\left(1,2\right]"),
    (r"[0,\infty)", r"[0, \infty)"),
    (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty) \cup (-\infty,2)"),
    (r"(2,\infty)", "x>2"),
    ("x>2", r"(2,\infty)"),
    ("x>2", "2<x"),
    (r"x \in [0,1]", "[0,1]"),
    (r"\pi", r"\pi"),
    (r"2\pi", r"2 \cdot \pi"),
    (r"\frac{\pi}{2}", r"\frac12\pi"),
    ("x^2+2x+1", "(x+1)^2"),
    ("2x+1", "y=2x+1"),
    ("y=2x+1", "2x+1"),
    ("y=2x+1", "y=1+2x"),
    ("x+y=2", "2x+2y=4"),
    ("5", "x=5"),
    ("x=5", "5"),
    ("5", "2+3=5"),
    (r"\text{(B)}", "B"),
    ("B", "(B)"),
    ("B", r"\text{B}"),
    (r"\text{yes}", "Yes"),
    (r"\text{even}", "even"),
    (r"\text{no solution}", "no solution"),
    ("1,000", "1000"),
    ("10000", "10{,}000"),
    ("1000", r"1\,000"),
    ("10^3", "1000"),
    (r"1.5\times10^3", "1500"),
    ("1e3", "1000"),
    ("-3", "−3"),
    (r"\frac{3}{2}", r"1\frac{1}{2}"),
    (r"\frac32", "1.5"),
    (r"5\text{ cm}", "5"),
    (r"5\text{ cm}", r"5\text{ centimeters}"),
    ("5", r"5\text{ cm}"),
    (r"5 \text{ cm}^2", r"5 \text{ square centimeters}"),
    (r"90^\circ", "90"),
    ("90", r"90^{\circ}"),
    (r"\$5", "5"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    (r"\begin{pmatrix}\frac12\\1\end{pmatrix}", r"\begin{pmatrix}0.5\\1\end{pmatrix}"),
    ("2^{10}", "1024"),
    (r"\log_2 8", "3"),
    (r"\sqrt[3]{8}", "2"),
    (r"e^{i\pi}", "-1"),
    ("1+2i", "2i+1"),
    (r"\pm 3", "3,-3"),
    (r"\pm 3", "-3, 3"),
    ("5!", "120"),
    (r"\binom{5}{2}", "10"),
    (r"\frac13", r"0.\overline{3}"),
    (r"0.1\overline{6}", r"\frac16"),
    ("101_2", "101_{2}"),
    ("1:2", "1 : 2"),
    (r"\emptyset", r"\emptyset"),
    (r"\infty", r"\infty"),
    (r"\frac{1}{x}", "x^{-1}"),
    (r"\sin^2 x + \cos^2 x", "1"),
    ("a+b", "b+a"),
    ("ab", "ba"),
    ("3.14", "3.14"),
    (r"\frac{22}{7}", "22/7"),
    ("x_1=5", "5"),
    ("(x,y)=(1,2)", "(1,2)"),
    ("f(x)=x^2", "x^2"),
    (r"\mathbb{R}", r"\mathbb{R}"),
    ("(1,2,3)", "(1, 2, 3)"),
    ("42", "42."),
    (r"\tan 45^\circ", "1"),
    ("|x|", r"\lvert x \rvert"),
    (r"3\sqrt{2}\text{ cm}", r"3\sqrt2"),
    (r"\frac{1}{2}", r"\frac{1}{2}."),
    (r"x=\frac{1}{2}", r"\frac{1}{2}"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    (r"-\frac12", "-0.5"),
    ("10!/8!", "90"),
    (r"\text{3}", "3"),
    ("7/8", "0.875"),
    ("(3,1)", "(3,1)"),
    ("2,3,5", "5, 3, and 2"),
    (r"\sqrt{2}+1", r"1+\sqrt{2}"),
]
# References, each with an answer that is another.
WRONG = [
    (r"\frac12", r"\frac13"),
    (r"\frac12", "12"),
    (r"\frac13", "0.33"),
    (r"\frac13", "0.333333"),
    (r"\frac13", "0.33333333333333"),
    (r"\pi", "3.14159265"),
    (r"\pi", "3.14"),
    (r"\sqrt2", "1.414213562"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(1,2]"),
    ("(1,2)", "(2,1)"),
    ("(3,1)", "(4,1)"),
    ("(1,1)", "(2,2)"),
    ("(1,2)", r"\{1,2\}"),
    ("(1,2)", "1,2"),
    (r"\{1,2\}", r"\{1,3\}"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    ("1,2", "1"),
    ("1", "1,2"),
    ("5", "5,6"),
    ("5", r"5 \text{ or } 6"),
    ("x>2", "x<2"),
    ("x>2", r"x\ge 2"),
    (r"(2,\infty)", r"x \geq 2"),
    (r"5\text{ cm}", r"5\text{ m}"),
    ("5 cm", "5 m"),
    (r"5\text{ cm}", r"5\text{ cm}^2"),
    ("x=5", "y=5"),
    ("5", "4=5"),
    ("43", "x+1=43"),
    ("5", "x+5"),
    (r"\text{A}", r"\text{B}"),
    ("B", "C"),
    (r"\text{no}", r"\text{on}"),
    (r"\text{abc}", r"\text{cab}"),
    (r"\text{yes}", r"\text{no}"),
    (r"\text{even}", r"\text{odd}"),
    (r"\text{east}", r"\text{west}"),
    ("1,000", "1"),
    ("1000", "1,0"),
    (r"\frac32", r"1\frac13"),
    (r"1\frac12", r"\frac12"),
    ("101_2", "101"),
    ("101_2", "5"),
    ("101_2", "101_3"),
    ("1:2", "2:1"),
    ("1:2", r"\frac12"),
    ("10:30", r"\frac13"),
    (r"\pm 3", "3"),
    ("3", r"\pm 3"),
    (r"\pm 3", "-3"),
    (r"\infty", r"-\infty"),
    ("x^2", "x^3"),
    ("(x+1)^2", "x^2+1"),
    ("2x+1", "2x-1"),
    ("2x+1", "2y+1"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    ("2^{-100}", "0"),
    ("3^{-100}", "2^{-100}"),
    ("10^{-20}", "0"),
    ("10^{-20}", "10^{-21}"),
    ("2^{100}", "2^{100}+1"),
    ("9007199254740993", "9007199254740992"),
    (r"\frac{1}{10^{20}}", "0"),
    ("1", r"1\%"),
    ("0.5", r"0.5\%"),
    ("50", "0.5"),
    (r"\frac{1}{x}", "x"),
    (r"\sqrt{x^2}", "x"),
    ("a+b", "a-b"),
    ("ab", "a+b"),
    (r"\sin x", r"\cos x"),
    ("e", "2.718281828"),
    ("-3", "3"),
    ("3", "-3"),
    ("1e3", "13"),
    ("1 1/2", "1"),
    ("2x", "x"),
    (r"2\pi", "2"),
    (r"90^\circ", r"\frac{\pi}{2}\cdot 2"),
    ("0.1", "0.10000000000000001"),
    (r"\emptyset", "0"),
    (r"\{0\}", r"\emptyset"),
    ("x=1,y=2", "x=2,y=1"),
    (r"\mathbb{R}", r"\mathbb{Z}"),
    ("y=2x+1", "y=2x"),
    ("x+y=2", "x+y=3"),
    (r"\text{no solution}", "0"),
    ("0", r"\text{no solution}"),
    ("12", "1 2"),
    ("5", ""),
    ("5", r"\text{5 or 6}"),
    ("5", "not 5"),
    ("7", "x"),
    ("x", "7"),
    (r"\sqrt{8}", r"\sqrt{2}"),
    (r"\log_2 8", r"\log_3 8"),
    ("5!", "5"),
    (r"\frac{a}{b}", r"\frac{b}{a}"),
    ("(1,2,3)", "(1,2)"),
    (r"(-\infty,2)\cup(3,\infty)", r"(-\infty,3)"),
    (r"\approx 3", r"\pi"),
]


@pytest.mark.parametrize(("reference", "answer"), RIGHT)
def test_what_is_equal_is_paid(reference: str, answer: str) -> None:
    assert math_worker.is_same((reference, answer))


@pytest.mark.parametrize(("reference", "answer"), WRONG)
def test_what_is_not_equal_is_not_paid(reference: str, answer: str) -> None:
    assert not math_worker.is_same((reference, answer))


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
        scores = equivalent(completions, answer=answers, timeout_s=1.0, prompts=[])
    assert scores == [1.0, 0.0, 0.0, 1.0, None]
    assert "1 (timeout) of 2 answers could not be compared and score 0" in caplog.text


def test_numbers_and_texts_take_no_process() -> None:
    began_s = time.monotonic()
    completions: list[Any] = [rf"\boxed{{{number}}}" for number in range(1000)]
    answers: list[Any] = [str(number) for number in range(1000)]
    assert equivalent(completions, answer=answers) == [1.0] * 1000
    assert time.monotonic() - began_s < 5


def test_references_that_cannot_be_read_are_found() -> None:
    answers: list[Any] = ["1/2", r"\frac{1", "x^2", "", None, "((", r"(1, \infty)", "yes", 3]
    found = check_rows(answer=answers)
    assert [fault is None for fault in found] == [True, False, True, False] + [True, False] + [
        True
    ] * 3
    assert found[1] == r"cannot be read as mathematics: `answer` is '\\frac{1'"
