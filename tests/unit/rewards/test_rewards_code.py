"""Programs are scored by the tests that they pass, and by nothing that they say themselves."""

from __future__ import annotations

import json

import pytest

from rlhf_ray.rewards.code import check_rows, passes_tests

TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]
RIGHT = "Here:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
HALF = "```python\ndef add(a, b):\n    return 3\n```"


async def scores(*texts, tests=TESTS, **arguments):
    return await passes_tests(
        completions=list(texts), tests=[tests] * len(texts), timeout_s=60.0, **arguments
    )


async def test_code_is_scored_by_statements_that_follow_it():
    chat = [{"role": "assistant", "content": RIGHT}]
    assert await scores(RIGHT, HALF, chat, "no code", "") == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert await scores(RIGHT, HALF, partial=True, tests=json.dumps(TESTS)) == [1.0, 0.5]
    thought = f"<think>{RIGHT}</think>{HALF}"
    assert await scores(thought, f"<think>{RIGHT}") == [0.0, 0.0]


@pytest.mark.parametrize(
    "trick",
    [
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "print('[true, true]'); import os; os._exit(0)",
        "import os; os.write(1, b'[true, true]'); os._exit(0)",
        "print(open('.stdin').read())",
        "while True: pass",
    ],
)
async def test_code_that_ends_early_passes_nothing(trick):
    text = f"```python\n{trick}\n```"
    assert await passes_tests(completions=[text], tests=[TESTS], timeout_s=5.0) == [0.0]


async def test_programs_are_scored_by_what_they_write():
    tests = [{"input": "1 2\n", "output": "3"}, {"input": "5 5\n", "output": "10\n"}]
    adds = "```python\nprint(sum(map(int, input().split())), ' ')\n```"
    fails = adds.replace("```python\n", "```python\nimport sys\n").replace(
        "\n```", "\nsys.exit(1)\n```"
    )
    assert await scores(adds, "```\nprint(3)\n```", fails, tests=tests, partial=True) == [1, 0.5, 0]


async def test_a_row_without_tests_is_left_to_other_rewards():
    assert await passes_tests(completions=[RIGHT], tests=[None]) == [None]


def test_tests_that_are_none_are_found_before_the_start():
    good = [TESTS, json.dumps(TESTS), [{"input": "", "output": "1"}], None]
    assert check_rows(good) == [None] * 4
    bad = [[], "nothing", "[]", [1], {"input": "x"}, ["a", {"input": "", "output": ""}]]
    assert all(check_rows(bad))
