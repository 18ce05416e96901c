"""Columns that reward functions ask for by name, before anything starts."""

from __future__ import annotations

from collections.abc import Iterable

from rlhf_ray.config.checks.references import required_arguments
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.data.nearest import listed, nearest, quoted
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.functions import GIVEN
from rlhf_ray.types import Prompt


def check_columns(reward: RewardConfig, prompts: Iterable[Prompt], *, key: str) -> None:
    """Whether every function finds what it must be given; no module is imported for it.

    Args:
        reward: The functions.
        prompts: A column counts where one of them has it: the others give None.
        key: Of the data in the configuration, for errors.

    Raises:
        ConfigError: A function needs what is neither a column of the data nor an argument.
    """
    missing = {
        name: function.path
        for function in reward.functions
        for name in required_arguments(function.path)
        if name not in GIVEN and name not in function.arguments
    }
    first: Prompt | None = None
    for prompt in prompts:
        first = first or prompt
        missing = {name: path for name, path in missing.items() if name not in prompt.columns}
        if not missing:
            return
    if missing and first is not None:
        name, path = next(iter(missing.items()))
        columns = dict(first.columns)
        near = nearest(name, columns)
        line = f"; set {key}.columns: {{{name}: {quoted(near)}}}" if near else ""
        raise ConfigError(
            f"{key}: the reward function {path!r} needs {name!r}, which is neither a column of the "
            f"data nor one of its arguments; there are {listed(columns, name)}{line}"
        )
