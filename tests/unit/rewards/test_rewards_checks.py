"""A column that a reward function needs and no row has: found when the data is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.checks.references import required_arguments
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.functions import GIVEN, check_columns
from rlhf_ray.types import Prompt

SOURCE = """
import not_installed_here

def near(
    prompts, completions, prompt_ids, completion_ids, opens_reasoning, answer, *, unit, **rest
):
    ...

async def later(completions, answer="", *, unit="m"):
    ...

@not_installed_here.decorated
def decorated(answer):
    ...

class Scorer:
    ...

elsewhere = not_installed_here.function
"""


def prompt(**columns: Any) -> Prompt:
    return Prompt(prompt_id="x:0", token_ids_T=(1,), text="q", columns=columns)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "scores.py"
    path.write_text(SOURCE)
    return path


def reward(source: Path, name: str = "near", **arguments: Any) -> RewardConfig:
    function = {"path": f"{source}:{name}", "arguments": arguments}
    return RewardConfig.model_validate({"functions": [function]})


def test_what_a_function_must_be_given_is_read_from_its_source(source: Path) -> None:
    given = ["prompts", "completions", "prompt_ids", "completion_ids", "opens_reasoning"]
    assert required_arguments(f"{source}:near") == [*given, "answer", "unit"]
    assert set(given) == GIVEN
    assert required_arguments(f"{source}:later") == ["completions"]
    for name in ("decorated", "Scorer", "elsewhere", "absent"):
        assert required_arguments(f"{source}:{name}") == []
    assert required_arguments("rlhf_ray.rewards.gsm8k:correct_answer") == ["completions", "answer"]


def test_a_column_that_no_row_has_is_named_with_the_line_to_write(source: Path) -> None:
    row = prompt(reward_model={"style": "rule", "ground_truth": "4"}, ability="math")
    with pytest.raises(ConfigError) as caught:
        check_columns(reward(source, unit="m"), [row, prompt()], key="eval.data")
    assert str(caught.value) == (
        f"eval.data: the reward function '{source}:near' needs 'answer', which is neither a column "
        "of the data nor one of its arguments; there are 'reward_model.ground_truth', "
        "'reward_model', 'ability', 'reward_model.style'; set eval.data.columns: "
        "{answer: reward_model.ground_truth}"
    )


def test_columns_of_any_row_and_arguments_will_do(source: Path) -> None:
    check_columns(reward(source, unit="m"), [prompt(), prompt(answer="4")], key="data")
    check_columns(reward(source, unit="m", answer=4), [prompt()], key="data")
    check_columns(reward(source), [prompt(answer=1), prompt(unit="m")], key="data")
    check_columns(reward(source, "later"), [prompt()], key="data")
    with pytest.raises(ConfigError, match="needs 'unit'"):
        check_columns(reward(source), [prompt(answer=1)], key="data")
