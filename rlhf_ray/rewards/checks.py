"""What reward functions find wrong with rows of data, before anything starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from rlhf_ray.config.references import says
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.functions import CHECK, RewardFunction, load_functions
from rlhf_ray.types import Prompt

logger = logging.getLogger(__name__)

_SHOWN = 3


def checking_functions(reward: RewardConfig) -> list[RewardFunction]:
    """Those that may have a check: the module of any other is imported where it scores alone.

    Raises:
        ConfigError: One cannot be loaded.
    """
    return load_functions([each for each in reward.functions if says(each.path, CHECK)])


def usable_prompts(
    prompts: Sequence[Prompt], functions: Sequence[RewardFunction], *, key: str, skip: bool
) -> list[Prompt]:
    """The prompts that every function can score.

    Args:
        prompts: With their columns.
        functions: With checks or without.
        key: Of the data in the configuration, for errors.
        skip: Whether to leave out others, which is logged; otherwise they are an error.

    Raises:
        ConfigError: A function finds something wrong with a row, or with all of them.
    """
    columns = _columns(prompts)
    faults: dict[int, str] = {}
    for function in functions:
        for row, fault in enumerate(function.check_rows(columns)):
            if fault is not None:
                faults.setdefault(row, f"{prompts[row].prompt_id}: {function.name}: {fault}")
    if not faults:
        return list(prompts)
    first = "; ".join(list(faults.values())[:_SHOWN])
    message = f"{key}: rewards cannot score {len(faults)} of {len(prompts)} rows: {first}"
    if not skip or len(faults) == len(prompts):
        raise ConfigError(message)
    logger.warning("%s; left out (%s.on_bad_row is skip)", message, key)
    return [prompt for row, prompt in enumerate(prompts) if row not in faults]


def _columns(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    names = sorted({name for prompt in prompts for name in prompt.columns})
    columns: dict[str, list[Any]] = {
        name: [prompt.columns.get(name) for prompt in prompts] for name in names
    }
    return {**columns, "prompts": [prompt.text for prompt in prompts]}
