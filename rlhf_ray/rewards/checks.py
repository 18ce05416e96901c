"""What reward functions find missing or wrong in the data, before anything starts."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rlhf_ray.config.checks.references import required_arguments, says
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.data.nearest import listed, nearest, quoted
from rlhf_ray.data.rows.rows import Rows, SelectedRows
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.functions import CHECK, GIVEN, RewardFunction, load_functions
from rlhf_ray.types import Prompt


def check_columns(reward: RewardConfig, prompts: Iterable[Prompt], *, key: str) -> None:
    """Whether every function finds what it must be given; no module is imported for it.

    A column counts where one of the prompts has it: the others give None. Errors name the data's
    `key` in the configuration.

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


logger = logging.getLogger(__name__)

_SHOWN = 3
_CHECKED_ROWS = 8192  # at a time


def checking_functions(reward: RewardConfig) -> list[RewardFunction]:
    """Those that may have a check: the module of any other is imported where it scores alone.

    Raises:
        ConfigError: One cannot be loaded.
    """
    return load_functions([each for each in reward.functions if says(each.path, CHECK)])


def usable_prompts(
    prompts: Rows[Prompt], functions: Sequence[RewardFunction], *, key: str, skip: bool
) -> Rows[Prompt]:
    """The prompts that every function can score.

    With `skip` others are left out, which is logged; otherwise they are an error that names the
    data's `key` in the configuration.

    Raises:
        ConfigError: A function finds something wrong with a row, or with all of them.
    """
    if not functions:
        return prompts
    faults: dict[int, str] = {}
    names = {name for prompt in prompts for name in prompt.columns}
    for start in range(0, len(prompts), _CHECKED_ROWS):
        checked = list(prompts[start : start + _CHECKED_ROWS])
        for row, fault in enumerate(prompt_faults(checked, functions, names)):
            if fault is not None:
                faults[start + row] = f"{checked[row].prompt_id}: {fault}"
    if not faults:
        return prompts
    first = "; ".join(list(faults.values())[:_SHOWN])
    message = f"{key}: rewards cannot score {len(faults)} of {len(prompts)} rows: {first}"
    if not skip or len(faults) == len(prompts):
        raise ConfigError(message)
    logger.warning("%s; left out (%s.on_bad_row is skip)", message, key)
    return SelectedRows(prompts, [row for row in range(len(prompts)) if row not in faults])


def prompt_faults(
    prompts: Sequence[Prompt],
    functions: Sequence[RewardFunction],
    names: Collection[str] = (),
) -> list[str | None]:
    """What the first function says that finds something wrong with a prompt; None where none does.

    `names` are those of all columns, where others of the data set have more of them.

    Raises:
        ConfigError: A function finds something wrong with all of them.
    """
    named = sorted({*names, *(name for prompt in prompts for name in prompt.columns)})
    columns: dict[str, list[Any]] = {
        name: [prompt.columns.get(name) for prompt in prompts] for name in named
    }
    columns["prompts"] = [prompt.text for prompt in prompts]
    faults: list[str | None] = [None] * len(prompts)
    for function in functions:
        for row, fault in enumerate(function.check_rows(columns)):
            if fault is not None and faults[row] is None:
                faults[row] = f"{function.name}: {fault}"
    return faults
