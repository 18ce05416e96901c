"""Reward functions: plain or async Python, with the signature that TRL's users know.

`function(prompts, completions, prompt_ids, completion_ids, opens_reasoning, **columns,
**arguments)` returns a `list[float | None]`. All comes by keyword, as lists with one entry a
completion; but the arguments come from the configuration. A function without `**` gets what it
names and no more. What functions find missing or wrong in the data is found before anything starts.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from rlhf_ray.config.checks.references import required_arguments, says
from rlhf_ray.config.rewards import RewardConfig, RewardFunctionConfig, function_names
from rlhf_ray.data.nearest import listed, nearest, quoted
from rlhf_ray.data.rows.rows import Rows, SelectedRows
from rlhf_ray.deadlines import in_daemon_thread
from rlhf_ray.errors import ConfigError, RlhfRayError
from rlhf_ray.rewards.batch import RewardError, Scores, ScoringBatch, check_scores
from rlhf_ray.rewards.loading import forget_files, load_function
from rlhf_ray.types import Prompt

logger = logging.getLogger(__name__)

# What a function may have as an attribute: a function that finds what is wrong with rows.
CHECK = "check_rows"
# What a function gets beside columns and arguments.
GIVEN = frozenset({"prompts", "completions", "prompt_ids", "completion_ids", "opens_reasoning"})
_GRACE_S = 1.0
_SHOWN = 3  # of the rows that cannot be scored
_CHECKED_ROWS = 8192  # at a time
# Most of what a batch holds; not worth a call each.
_UNCHANGING = frozenset((str, int, float, bool, type(None)))


@dataclass(frozen=True, kw_only=True)
class RewardFunction:
    """One reward function, ready to be called.

    Attributes:
        name: Its key among a score's parts.
        function: Plain or async.
        arguments: Handed over with every call; a column of the same name gives way.
        weight: In the sum.
    """

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    weight: float

    def __post_init__(self) -> None:
        """Check the arguments against the signature.

        Raises:
            ConfigError: The function does not take one of them, or takes some by position only.
        """
        accepted, takes_any = self._keywords()
        for name in self.arguments:
            if not takes_any and name not in accepted:
                near = get_close_matches(name, accepted, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it takes {accepted}"
                raise ConfigError(
                    f"reward function {self.name!r} takes no argument {name!r}; {hint}"
                )

    @property
    def is_async(self) -> bool:
        """Whether it says that it waits for others: written with `async def`."""
        called = getattr(type(self.function), "__call__", None)  # noqa: B004  an object of the user's
        return any(map(inspect.iscoroutinefunction, (self.function, called)))

    async def score(self, batch: ScoringBatch, *, timeout_s: float) -> Scores:
        """Call the function once for all rows, in a thread of its own.

        It gets copies: what it changes, no other function sees, nor its own next call.

        Raises:
            RewardError: It raised, lacks an argument, took longer than `timeout_s`, or did not
                return one finite number or `None` a row.
        """
        values = await self._call(self._select(batch), timeout_s, num_rows=len(batch))
        return check_scores(values, batch, f"reward function {self.name!r}")

    def check_rows(self, columns: Mapping[str, list[Any]]) -> list[str | None]:
        """What the function's own `check_rows` finds wrong with each row of columns and `prompts`.

        Raises:
            ConfigError: The check raised, or did not return a text or None a row.
        """
        num_rows = len(columns["prompts"])
        check = getattr(self.function, CHECK, None)
        if check is None:
            return [None] * num_rows
        available = {**columns, **self.arguments, "prompts": columns["prompts"]}
        try:
            found = list(check(**_own_copy(replace(self, function=check)._named(available))))
        except RlhfRayError as error:
            raise ConfigError(str(error)) from error
        # The user's code may raise anything.
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"reward function {self.name!r}: its check_rows raised "
                f"{type(error).__name__}: {error}"
            ) from error
        if len(found) != num_rows or not all(isinstance(text, str | None) for text in found):
            raise ConfigError(
                f"reward function {self.name!r}: its check_rows must return a text or None for "
                f"each of {num_rows} rows, got {found!r:.80}"
            )
        return found

    def _select(self, batch: ScoringBatch) -> dict[str, Any]:
        """The keyword arguments of a call, for it alone."""
        available: dict[str, Any] = {
            **batch.columns,
            **self.arguments,
            "prompts": batch.prompts_B,
            "completions": batch.completions_B,
            "prompt_ids": batch.prompt_token_ids_B,
            "completion_ids": batch.completion_ids_B,
            "opens_reasoning": batch.opens_reasoning_B,
        }
        return {name: _own_copy(value) for name, value in self._named(available).items()}

    def _named(self, available: dict[str, Any]) -> dict[str, Any]:
        """What the function takes of it: all, or what it names.

        Raises:
            RewardError: Something that it needs is not there.
        """
        accepted, takes_any = self._keywords()
        missing = [
            name for name, required in accepted.items() if required and name not in available
        ]
        if missing:
            raise RewardError(
                f"reward function {self.name!r} needs {missing[0]!r}, which is neither a column of "
                f"the data nor one of its arguments; there are {sorted(available)}"
            )
        if takes_any:
            return available
        return {name: value for name, value in available.items() if name in accepted}

    def _keywords(self) -> tuple[dict[str, bool], bool]:
        """Name -> whether it is required, of all keyword parameters; and whether there is `**`.

        Raises:
            ConfigError: It takes something by position only, or does not say what it takes.
        """
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError) as error:
            raise ConfigError(f"reward function {self.name!r} has no signature: {error}") from error
        accepted = {
            parameter.name: parameter.default is parameter.empty
            for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }
        for parameter in parameters:
            if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
                raise ConfigError(
                    f"reward function {self.name!r} must take {parameter.name!r} by keyword"
                )
        return accepted, any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)

    async def _call(self, keywords: dict[str, Any], timeout_s: float, *, num_rows: int) -> Any:
        try:
            async with asyncio.timeout(timeout_s) as timer:
                return await in_daemon_thread(
                    lambda: _run(self.function, keywords, timeout_s), name="reward-function"
                )
        # The user's code may raise anything; an exit() in it must not end the actor, nor a task
        # of its own that was cancelled look like an end of this one.
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                raise
            if isinstance(error, TimeoutError) and timer.expired():
                raise RewardError.of(
                    f"reward function {self.name!r} did not return within {timeout_s:g} s "
                    f"for {num_rows} completions",
                    cause="hung",
                ) from error
            raise RewardError(
                f"reward function {self.name!r} raised {type(error).__name__}: {error}"
            ) from error


def load_functions(
    configs: Sequence[RewardFunctionConfig], *, taken: Collection[str] = ()
) -> list[RewardFunction]:
    """Load every configured function, from files as they are now, under names that are not taken.

    Raises:
        ConfigError: One cannot be loaded, or does not take its arguments.
    """
    forget_files()
    return [
        RewardFunction(
            name=name,
            function=load_function(config.path),
            arguments=config.arguments,
            weight=config.weight,
        )
        for name, config in zip(function_names(configs, taken), configs, strict=True)
    ]


def _run(function: Callable[..., Any], keywords: dict[str, Any], timeout_s: float) -> Any:
    """Call a function to its end, whatever it returns first: an awaitable or a generator."""
    result = function(**keywords)
    if inspect.isawaitable(result):
        # The caller's own deadline comes first; this one ends what it gave up.
        result = asyncio.run(asyncio.wait_for(_awaited(result), timeout_s + _GRACE_S))
    return list(result) if isinstance(result, Iterator) else result


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def _own_copy(value: Any) -> Any:
    """Lists and mappings anew, down to what they hold: texts and numbers cannot be changed."""
    if isinstance(value, dict):
        return {key: _own_copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [item if type(item) in _UNCHANGING else _own_copy(item) for item in value]
    return copy.deepcopy(value)


def check_columns(reward: RewardConfig, prompts: Iterable[Prompt], *, key: str) -> None:
    """Whether every function and judge finds what it must be given; no module is imported for it.

    A column counts where one of the prompts has it: the others give None. Errors name the data's
    `key` in the configuration.

    Raises:
        ConfigError: One needs what is neither a column of the data nor an argument.
    """
    missing = dict.fromkeys(reward.judge.columns, "reward.judge.template")
    missing |= {
        name: f"the reward function {function.path!r}"
        for function in reward.functions
        for name in required_arguments(function.path)
        if name not in GIVEN and name not in function.arguments
    }
    first: Prompt | None = None
    for prompt in prompts:
        first = first or prompt
        missing = {name: who for name, who in missing.items() if name not in prompt.columns}
        if not missing:
            return
    if missing and first is not None:
        name, who = next(iter(missing.items()))
        columns = dict(first.columns)
        near = nearest(name, columns)
        line = f"; set {key}.columns: {{{name}: {quoted(near)}}}" if near else ""
        raise ConfigError(
            f"{key}: {who} needs {name!r}, which is neither a column of the data nor one of its "
            f"arguments; there are {listed(columns, name)}{line}"
        )


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
