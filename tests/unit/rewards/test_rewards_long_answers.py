"""Answers as long as a policy likes: what reads them takes no quadratic time."""

from __future__ import annotations

import time

import pytest

from rlhf_ray.rewards.answers import answer_part, stated_answer
from rlhf_ray.rewards.gsm8k import final_number
from rlhf_ray.rewards.math_forms import read_form
from rlhf_ray.rewards.reasoning_gym import last_answer

NUM_CHARACTERS = 100_000
READERS = {
    "gsm8k": final_number,
    "math": lambda text: read_form(stated_answer(text)),
    "reasoning_gym": last_answer,
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("front", "again", "end"),
    [
        ("", "</s>", ""),
        ("The answer is 5", "<eos> ", ""),
        ("", "<|a|>", ""),
        ("", "<answer>", ""),
        ("", "<answer>a</answer>", "<answer>"),
        ("a", " ", "b"),
        ("", "``` ", ""),
        ("", "\\boxed{", ""),
        ("", "if answer ", ""),
    ],
)
def test_the_longest_answer_is_read_at_once(read, front, again, end):
    text = front + again * (NUM_CHARACTERS // len(again)) + end
    started_s = time.process_time()
    READERS[read](text)
    assert time.process_time() - started_s < 1.0


def test_all_tokens_at_the_end_are_no_part_of_an_answer():
    assert answer_part("It is < 5 </s> <|im_end|>\n<eos>") == "It is < 5"
    assert answer_part("5<|im_end|>.") == "5<|im_end|>."
    assert answer_part("</s><eos>") == ""


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>1</answer> or <answer> 2\n</answer>", "2"),
        ("<answer>1</answer><answer>2", "1"),
        ("<answer>1 <answer>2</answer>", "1 <answer>2"),
        ("</answer><answer></answer>", ""),
        ("5", None),
    ],
)
def test_the_last_answer_is_the_last_that_is_closed(text, answer):
    assert last_answer(text) == answer
