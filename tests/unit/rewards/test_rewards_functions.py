from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rlhf_ray.config.rewards import RewardConfig, RewardFunctionConfig, function_names
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.batch import RewardError, ScoringBatch
from rlhf_ray.rewards.functions import RewardFunction, load_functions
from rlhf_ray.types import Rollout

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
        "opens_reasoning": [False, False],
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

    async def gives_up(**_: Any) -> list[float]:
        raise asyncio.CancelledError

    for function, message in (
        (plain, "reward function 'mine' raised KeyError: 'label'"),
        (asynchronous, "reward function 'mine' raised TimeoutError: the judge sleeps"),
        (leaves, "reward function 'mine' raised SystemExit: 3"),
        (gives_up, "reward function 'mine' raised CancelledError"),
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

    there = r"\['completion_ids', .*'label', .*'prompt_ids', 'prompts'"
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
    prompt_token_ids_B=[[2]], completion_ids_B=[[1]], opens_reasoning_B=[False],
    columns={}
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


def test_names_are_those_given_or_told_apart() -> None:
    config = RewardConfig.model_validate(
        {
            "functions": [
                {"path": "a.py:f"},
                {"path": "b.py:f"},
                {"path": "a.py:f_2"},
                {"path": "a.py:model"},
                {"path": "a.py:f", "name": "f_3"},
                {"path": "a.py:remote"},
                {"path": "a.py:f"},
            ],
            "model": {"path": "org/model"},
        }
    )
    names = function_names(config.functions, config.other_names)
    assert names == ["f", "f_2", "f_2_2", "model_2", "f_3", "remote", "f_4"]


@pytest.mark.parametrize("name", ["model", "mine"])
def test_names_that_users_give_must_differ(name: str) -> None:
    functions = [{"path": "a.py:f", "name": "mine"}, {"path": "a.py:g", "name": name}]
    with pytest.raises(ValueError, match=f"must have names that differ .*, got '{name}' twice"):
        RewardConfig.model_validate({"functions": functions, "model": {"path": "org/model"}})
    with pytest.raises(ValueError, match="should match pattern"):
        RewardFunctionConfig(path="a.py:f", name="a/b")


def test_what_a_function_changes_no_other_call_sees(make_rollout: Callable[..., Rollout]) -> None:
    chat = [{"role": "user", "content": "hi"}]
    rows = [make_rollout(n, chat, "yo", {"tags": ["a", {"deep": [1]}]}) for n in range(2)]
    batch = ScoringBatch.from_rollouts(rows)
    before = repr(batch)

    def spoils(
        prompts: Any, completions: Any, completion_ids: Any, tags: Any, words: Any, **_: Any
    ) -> list[float]:
        assert words == ["x"] and tags[0] == ["a", {"deep": [1]}]
        prompts[0][0]["content"] = completions[0][0]["content"] = "spoiled"
        prompts[1].clear(), completion_ids[0].clear(), completions.pop()
        tags[0][1]["deep"].append(2), words.append("y")
        assert tags[1] == ["a", {"deep": [1]}]
        return [1.0, 2.0]

    reward = RewardFunction(name="f", function=spoils, arguments={"words": ["x"]}, weight=1.0)
    for _ in range(2):
        assert asyncio.run(reward.score(batch, timeout_s=5)) == [1.0, 2.0]
    assert repr(batch) == before and chat[0]["content"] == "hi"


class Stateful:
    """A function with memory."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions: list[str], *, scale: float = 1.0) -> list[float]:
        self.calls += 1
        return [scale * self.calls for _ in completions]


class Asynchronous:
    """A function of the same kind that waits."""

    async def __call__(self, completions: list[str], **_: Any) -> list[float]:
        await asyncio.sleep(0)
        return [1.0 for _ in completions]


def test_objects_partials_and_generators_are_functions_too(make_batch: MakeBatch) -> None:
    def scaled(completions: list[str], scale: float, *, offset: float) -> list[float]:
        return [scale + offset for _ in completions]

    def one_by_one(completions: list[str]) -> Iterator[float]:
        assert threading.current_thread().name == "reward-function"
        yield from (float(len(text)) for text in completions)

    batch, stateful = make_batch("a", "bb"), Stateful()
    assert [score(stateful, batch, scale=2) for _ in range(2)] == [[2.0, 2.0], [4.0, 4.0]]
    assert score(Asynchronous(), batch) == [1.0, 1.0]
    assert score(functools.partial(scaled, scale=1.0), batch, offset=2.0) == [3.0, 3.0]
    assert score(one_by_one, batch) == [1.0, 2.0]


def test_a_generator_that_raises_is_named(make_batch: MakeBatch) -> None:
    def one_by_one(completions: list[str]) -> Iterator[float]:
        yield 1.0
        raise KeyError("label")

    with pytest.raises(RewardError, match="reward function 'mine' raised KeyError: 'label'"):
        score(one_by_one, make_batch("a", "b"))


def test_an_async_function_that_blocks_does_not_hold_up_the_deadline(make_batch: MakeBatch) -> None:
    released = threading.Event()

    async def blocks(**_: Any) -> list[float]:
        released.wait(30)
        return [1.0]

    reward = RewardFunction(name="slow", function=blocks, arguments={}, weight=1.0)
    began_s = time.monotonic()
    with pytest.raises(RewardError, match="'slow' did not return within"):
        asyncio.run(reward.score(make_batch("a"), timeout_s=0.1))
    assert time.monotonic() - began_s < 10
    released.set()


def test_what_cannot_be_called_by_keyword_is_refused() -> None:
    def positional(completions: list[str], /) -> list[float]:
        return [0.0 for _ in completions]

    with pytest.raises(ConfigError, match="'f' must take 'completions' by keyword"):
        RewardFunction(name="f", function=positional, arguments={}, weight=1.0)


class Inherits(Asynchronous):
    """Waits as its parent does."""


def test_what_is_written_as_async_says_so() -> None:
    async def asynchronous(completions: list[str], scale: float = 1.0) -> list[float]:
        return [scale for _ in completions]

    def plain(completions: list[str], scale: float = 1.0) -> list[float]:
        return [scale for _ in completions]

    for function, is_async in (
        (asynchronous, True),
        (functools.partial(asynchronous, scale=2.0), True),
        (Asynchronous(), True),
        (Inherits(), True),
        (plain, False),
        (functools.partial(plain, scale=2.0), False),
        (Stateful(), False),
    ):
        reward = RewardFunction(name="f", function=function, arguments={}, weight=1.0)
        assert reward.is_async is is_async, function
