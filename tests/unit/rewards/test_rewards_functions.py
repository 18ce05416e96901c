from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.rewards import RewardFunctionConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.batch import RewardError, ScoringBatch
from rlhf_ray.rewards.functions import RewardFunction, load_functions
from rlhf_ray.rewards.loading import load_function

MakeBatch = Callable[..., ScoringBatch]


def score(function: Callable[..., Any], batch: ScoringBatch, **arguments: Any) -> Any:
    reward = RewardFunction(name="mine", function=function, arguments=arguments, weight=1.0)
    return asyncio.run(reward.score(batch, timeout_s=5))


def test_a_function_gets_prompts_completions_columns_and_arguments(make_batch: MakeBatch) -> None:
    seen: dict[str, Any] = {}

    def reward(**keywords: Any) -> list[float]:
        seen.update(keywords)
        return [1.0, 2.0]

    batch = make_batch("a", "bb", answer=[3, 4])
    assert score(reward, batch, scale=2) == [1.0, 2.0]
    assert seen == {
        "prompts": ["p0", "p1"],
        "completions": ["a", "bb"],
        "prompt_ids": [[1, 2], [1, 2]],
        "completion_ids": [[0], [0, 1]],
        "answer": [3, 4],
        "scale": 2,
    }


def test_a_function_without_double_star_gets_what_it_names(make_batch: MakeBatch) -> None:
    def reward(completions: list[str], *, answer: list[int], bonus: float = 0.5) -> list[float]:
        return [
            len(text) + number + bonus for text, number in zip(completions, answer, strict=True)
        ]

    batch = make_batch("a", "bb", answer=[1, 2], other=[0, 0])
    assert score(reward, batch) == [2.5, 4.5]


def test_an_argument_goes_before_a_column_and_a_completion_before_both(
    make_batch: MakeBatch,
) -> None:
    def reward(completions: list[str], word: Any) -> list[float]:
        return [float(text == word) for text in completions]

    batch = make_batch("a", "b", word=["x", "y"], completions=["x", "y"])
    assert score(reward, batch, word="a") == [1.0, 0.0]


def test_an_async_function_runs_in_the_loop_and_a_plain_one_beside_it(
    make_batch: MakeBatch,
) -> None:
    threads: list[str] = []

    async def asynchronous(completions: list[str]) -> list[float | None]:
        await asyncio.sleep(0)
        return [None, float(len(completions))]

    def plain(completions: list[str]) -> list[float]:
        threads.append(threading.current_thread().name)
        return [0.0] * len(completions)

    assert score(asynchronous, make_batch("a", "b")) == [None, 2.0]
    assert score(plain, make_batch("a")) == [0.0]
    assert threads == ["reward-function"]


def test_a_plain_function_does_not_hold_up_the_loop(make_batch: MakeBatch) -> None:
    def slow(completions: list[str]) -> list[float]:
        time.sleep(0.3)
        return [1.0]

    async def both() -> int:
        reward = RewardFunction(name="slow", function=slow, arguments={}, weight=1.0)
        task = asyncio.create_task(reward.score(make_batch("a"), timeout_s=5))
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert task.result() == [1.0]
        return ticks

    assert asyncio.run(both()) > 5


def test_what_a_function_raises_is_named_with_its_cause(make_batch: MakeBatch) -> None:
    def plain(**_: Any) -> list[float]:
        raise KeyError("label")

    async def asynchronous(**_: Any) -> list[float]:
        raise TimeoutError("the judge sleeps")

    def leaves(**_: Any) -> list[float]:
        sys.exit(3)

    def stops(**_: Any) -> list[float]:
        raise StopIteration

    for function, message in (
        (plain, "reward function 'mine' raised KeyError: 'label'"),
        (asynchronous, "reward function 'mine' raised TimeoutError: the judge sleeps"),
        (leaves, "reward function 'mine' raised SystemExit: 3"),
        (stops, "reward function 'mine' raised RuntimeError: .* StopIteration"),
    ):
        with pytest.raises(RewardError, match=message) as caught:
            score(function, make_batch("a"))
        assert caught.value.__cause__ is not None


def test_a_wrong_number_or_nan_names_function_and_row(make_batch: MakeBatch) -> None:
    with pytest.raises(RewardError, match="reward function 'mine' must return 2 scores, got 1"):
        score(lambda **_: [1.0], make_batch("a", "b"))
    with pytest.raises(RewardError, match=r"'mine': the score of prompt 'train:1' .* nan"):
        score(lambda **_: [1.0, float("nan")], make_batch("a", "b"))


def test_a_missing_column_is_named(make_batch: MakeBatch) -> None:
    def reward(completions: list[str], answer: list[int]) -> list[float]:
        raise AssertionError("must not be called")

    there = r"\['completion_ids', .*'label', 'prompt_ids', 'prompts'"
    message = rf"needs 'answer', which is neither a column .*{there}"
    with pytest.raises(RewardError, match=message):
        score(reward, make_batch("a", label=[1]))


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_the_deadline_holds(make_batch: MakeBatch, kind: str) -> None:
    released = threading.Event()

    def plain(**_: Any) -> list[float]:
        released.wait(30)
        return [1.0]

    async def asynchronous(**_: Any) -> list[float]:
        await asyncio.sleep(30)
        return [1.0]

    function = plain if kind == "plain" else asynchronous
    reward = RewardFunction(name="slow", function=function, arguments={}, weight=1.0)
    began = time.monotonic()
    with pytest.raises(RewardError, match=r"'slow' did not return within 0\.1 s for 1 completions"):
        asyncio.run(reward.score(make_batch("a"), timeout_s=0.1))
    assert time.monotonic() - began < 5
    released.set()


def test_a_function_that_never_returns_does_not_keep_the_process() -> None:
    code = """
import asyncio, time
from rlhf_ray.rewards.batch import ScoringBatch
from rlhf_ray.rewards.functions import RewardFunction
batch = ScoringBatch(
    prompt_ids_B=["a:0"], prompts_B=["p"], completions_B=["c"],
    prompt_token_ids_B=[[2]], completion_ids_B=[[1]], columns={}
)
reward = RewardFunction(name="f", function=lambda **_: time.sleep(600), arguments={}, weight=1.0)
try:
    asyncio.run(reward.score(batch, timeout_s=0.05))
except Exception as error:
    print(type(error).__name__)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "RewardError"
    assert result.stderr == ""


def test_functions_are_loaded_by_path_and_named_apart() -> None:
    path = "rlhf_ray.rewards.contains:contains_word"
    functions = load_functions(
        [
            RewardFunctionConfig(path=path, arguments={"word": "happy"}),
            RewardFunctionConfig(path=path, arguments={"word": "sad"}, weight=-1.0),
        ]
    )
    assert [(function.name, function.weight) for function in functions] == [
        ("contains_word", 1.0),
        ("contains_word_2", -1.0),
    ]


def test_an_argument_that_the_function_does_not_take_is_named_with_the_nearest() -> None:
    def reward(completions: list[str], word: str) -> list[float]:
        return [0.0]

    with pytest.raises(ConfigError, match="'mine' takes no argument 'wrod'; did you mean 'word'"):
        RewardFunction(name="mine", function=reward, arguments={"wrod": "x"}, weight=1.0)
    with pytest.raises(ConfigError, match="'mine' takes no argument 'q'; it takes"):
        RewardFunction(name="mine", function=reward, arguments={"q": "x"}, weight=1.0)


def test_a_function_is_loaded_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my.rewards.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Weight:\n    value: float = 2.0\n"
        "def reward(completions):\n    return [Weight().value for _ in completions]\n"
    )
    assert load_function(f"{file}:reward")(completions=["a"]) == [2.0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("just_a_name", "must be given as package.module:function or .*, got 'just_a_name'"),
        ("module:", "must be given as"),
        (":function", "must be given as"),
        ("no_such_package.rewards:f", r"no module 'no_such_package\.rewards'.*path/to/file\.py"),
        ("rlhf_ray.rewards.nothing:f", r"no module 'rlhf_ray\.rewards\.nothing'"),
        (".relative:f", r"importing \.relative raised TypeError"),
        ("/no/such/file.py:f", "no file '/no/such/file.py' for a reward function"),
        (
            "rlhf_ray.rewards.contains:contain_word",
            "has no function 'contain_word'; did you mean 'contains_word'",
        ),
        ("rlhf_ray.rewards.contains:zzz", r"has no function 'zzz'; functions there: \["),
        ("rlhf_ray.rewards.contains:__doc__", "has no function '__doc__'"),
    ],
)
def test_a_function_that_is_not_there_is_named(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_function(path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_dependency", "raised ModuleNotFoundError: No module named 'no_such_dep"),
        ("def f(:", "raised SyntaxError"),
        ("raise SystemExit(2)", "raised SystemExit: 2"),
    ],
)
def test_a_file_that_does_not_import_is_named_with_its_cause(
    tmp_path: Path, code: str, message: str
) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(code)
    with pytest.raises(ConfigError, match=rf"importing {file} {message}"):
        load_function(f"{file}:f")
