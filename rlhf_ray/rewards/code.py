"""Verifier of programs: does the code of a completion pass the row's tests, in the sandbox?"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Sequence
from itertools import islice
from typing import Any, TypeAlias

from rlhf_ray.data.chat.reasoning import behind_reasoning
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.rewards.batch import Messages, Scores, completion_text
from rlhf_ray.sandbox.limits import Limits
from rlhf_ray.sandbox.run import run_python

# A statement that raises where it fails, or a program's input and output.
Test: TypeAlias = str | dict[str, str]

_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
# Runs the solution, then each statement behind it. What it says at last begins with a word that the
# solution is not told, so that one which ends early has passed nothing.
_STATEMENTS = """
import json, os
word = input()
tests = json.load(open(".tests"))
os.unlink(".stdin"), os.unlink(".tests"), os.unlink("main.py")
said, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(nothing, number)
names, passed = {"__name__": "solution"}, []
try:
    exec(compile(open("solution.py").read(), "solution.py", "exec"), names)
    for test in tests:
        try:
            exec(test, names)
            passed.append(True)
        except BaseException:
            passed.append(False)
except BaseException:
    pass
os.write(said, (word + json.dumps(passed)).encode())
os._exit(0)
"""


async def passes_tests(
    completions: list[str | Messages],
    tests: list[Any],
    *,
    opens_reasoning: list[bool] | None = None,
    partial: bool = False,
    timeout_s: float = 10.0,
    memory_mb: int = 512,
    **_: Any,
) -> Scores:
    """1 where a completion's last block of Python passes all of the row's `tests`, else 0.

    Tests are statements (`assert add(1, 2) == 3`), which run behind the code, or programs' `input`
    and `output`, which are compared but for space at the ends of lines; a list of either, or its
    JSON text. With `partial` it is the share of tests that pass. None where a row has no tests.
    Code that takes more time or memory passes nothing.

    Raises:
        SandboxRefused: The machine has no sandbox.
    """
    limits = Limits(wall_s=timeout_s, cpu_s=max(1, round(timeout_s)), memory_mb=memory_mb)

    async def score(completion: str | Messages, cell: Any, is_opened: bool) -> float | None:
        if cell is None:
            return None
        wanted, code = _tests(cell), _code(completion_text(completion), is_opened=is_opened)
        if not code:
            return 0.0
        passed = await _passed(code, wanted, limits)
        return sum(passed) / len(passed) if partial else float(all(passed))

    rows = zip(completions, tests, opens_reasoning or [False] * len(tests), strict=True)
    # As many at a time as there are processors: time is limited, and others would take of it.
    scores: Scores = []
    while some := list(islice(rows, len(os.sched_getaffinity(0)))):
        scores += await side_by_side(score(*row) for row in some)
    return scores


def check_rows(tests: list[Any], **_: Any) -> list[str | None]:
    """What is wrong with each row's `tests`, before anything starts."""
    return [None if cell is None else _fault(cell) for cell in tests]


passes_tests.check_rows = check_rows  # type: ignore[attr-defined]


def _fault(cell: Any) -> str | None:
    try:
        _tests(cell)
    except ValueError as error:
        return str(error)
    return None


def _tests(cell: Any) -> list[Test]:
    """The tests of a row.

    Raises:
        ValueError: It holds none, or anything else.
    """
    tests = json.loads(cell) if isinstance(cell, str) else cell
    kinds = {_kind(test) for test in tests} if isinstance(tests, list) else set()
    if kinds not in ({"statement"}, {"program"}):
        raise ValueError(
            "`tests` must be a list of statements, or one of objects with `input` and `output`, "
            f"got {str(cell)[:200]!r}"
        )
    return list(tests)


def _kind(test: Any) -> str:
    if isinstance(test, str):
        return "statement"
    is_program = isinstance(test, dict) and all(
        isinstance(test.get(key), str) for key in ("input", "output")
    )
    return "program" if is_program else ""


def _code(text: str, *, is_opened: bool) -> str:
    """The last block of code behind the reasoning; empty where there is none."""
    blocks = _BLOCK.findall(behind_reasoning(text, is_opened=is_opened))
    return str(blocks[-1]) if blocks else ""


async def _passed(code: str, tests: Sequence[Test], limits: Limits) -> list[bool]:
    """Whether it passes each test."""
    statements = [test for test in tests if isinstance(test, str)]
    if statements:
        word = secrets.token_hex(8)
        files = {"solution.py": code, ".tests": json.dumps(statements)}
        outcome = await run_python(_STATEMENTS, stdin=f"{word}\n", files=files, limits=limits)
        said = outcome.stdout.removeprefix(word) if outcome.stdout.startswith(word) else ""
        passed: list[bool] = json.loads(said) if said else []
        return passed if len(passed) == len(statements) else [False] * len(statements)
    results = []
    for test in tests:
        assert isinstance(test, dict)
        outcome = await run_python(code, stdin=test["input"], limits=limits)
        results.append(outcome.is_success and _lines(outcome.stdout) == _lines(test["output"]))
    return results


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
