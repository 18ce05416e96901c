"""Tasks of reasoning-gym and their own verifiers (https://github.com/open-thought/reasoning-gym).

A task is made anew from its place: the same name, seed and settings make the same one. So a row of
data holds its place, and nothing that JSON cannot write.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.batch import Messages, RewardError, Scores, completion_text

_OPENED, _CLOSED = "<answer>", "</answer>"
COLUMN = "reasoning_gym"


def verified(completions: list[str | Messages], reasoning_gym: list[Any], **_: Any) -> Scores:
    """What a task's verifier gives for the last `<answer>` of a completion, 0 to 1.

    The column `reasoning_gym` holds a task's place, as `rows` writes it; None leaves a row to other
    rewards.

    Raises:
        ConfigError: reasoning-gym is not installed, or has no such task.
        RewardError: The verifier gave something else.
    """
    return [
        None if place is None else score(completion_text(completion), place)
        for completion, place in zip(completions, reasoning_gym, strict=True)
    ]


def rows(task: str, *, size: int, seed: int, **settings: Any) -> list[dict[str, Any]]:
    """Prompts of a task, with their places.

    Args:
        task: Its name: `countdown`, `chain_sum`, ...
        size: How many.
        seed: Other seeds make other prompts.
        settings: The task's own.

    Raises:
        ConfigError: As for `verified`, or the task does not take the settings.
    """
    made = []
    for index in range(size):
        place = {"task": task, "seed": seed, "size": size, "index": index, "settings": settings}
        question = f"{entry(place)['question']}\n\nGive the answer between <answer> and </answer>."
        made.append({"prompt": [{"role": "user", "content": question}], COLUMN: place})
    return made


def score(text: str, place: Any) -> float:
    """What the verifier gives for a text's last answer; 0 for a text without one."""
    value = _dataset_of(place).score_answer(last_answer(text), entry(place))
    if not isinstance(value, int | float):
        raise RewardError(f"reasoning-gym's verifier gave {value!r} for {place}")
    return float(value)


def last_answer(text: str) -> str | None:
    """What stands in the last `<answer>` that is closed; None without one."""
    answer, behind = None, text
    while True:
        _, opened, behind = behind.partition(_OPENED)
        said, closed, behind = behind.partition(_CLOSED)
        if not (opened and closed):
            return answer
        answer = said.strip()


def entry(place: Any) -> Mapping[str, Any]:
    """The task at a place: `question`, `answer`, `metadata`."""
    made: Mapping[str, Any] = _dataset_of(place)[_read(place)["index"]]
    return made


def task_of(place: Any) -> str:
    """The name of the task at a place."""
    return str(_read(place)["task"])


def _dataset_of(place: Any) -> Any:
    read = _read(place)
    return _dataset(read["task"], read["seed"], read["size"], json.dumps(read["settings"]))


def _read(place: Any) -> dict[str, Any]:
    """A place, or its JSON text."""
    read: dict[str, Any] = json.loads(place) if isinstance(place, str) else place
    return read


@functools.lru_cache(maxsize=16)
def _dataset(task: str, seed: int, size: int, settings: str) -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ConfigError(
            "tasks of reasoning-gym need that package: pip install reasoning-gym, or rlhf-ray with "
            "its extra `reasoning`"
        ) from error
    try:
        return reasoning_gym.create_dataset(task, seed=seed, size=size, **json.loads(settings))
    # It asserts what settings may be.
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"task {task!r} of reasoning-gym with {settings}: {error}") from error
