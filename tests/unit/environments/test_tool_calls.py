"""Calls of tools in what a policy says, of which it may say a lot."""

from __future__ import annotations

import time

import pytest

from rlhf_ray.environments.tool_calls import PARSERS

NUM_CHARACTERS = 100_000


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    ("front", "again"),
    [
        ("to=functions.", "a"),
        ("", "to=functions.a"),
        ("", "to=functions.a "),
        ("to=functions.a", "<|channel|>"),
        ("", "to=functions.a<|channel|>"),
        ("", "<|message|>"),
        ("to=functions.a<|message|>", "["),
        ("", "<tool_call>"),
        ("", "<tool_call>{"),
        ("<tool_call>", "["),
        ("<tool_call>", " "),
        ("", "</think>"),
    ],
)
def test_the_longest_answer_holds_up_nobody(parser, front, again):
    answer = front + again * (NUM_CHARACTERS // len(again))
    started_s = time.process_time()
    PARSERS[parser]().calls(answer)
    assert time.process_time() - started_s < 1.0
