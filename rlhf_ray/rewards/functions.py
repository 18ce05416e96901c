"""Reward functions: plain or async Python, with the signature that TRL's users know.

`function(prompts, completions, completion_ids, **columns, **arguments) -> list[float | None]`, all
by keyword. All are lists with one entry a completion, but the arguments: these come from the
configuration. A function without `**` gets what it names and no more.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from rlhf_ray.config.rewards import RewardFunctionConfig
from rlhf_ray.deadlines import in_daemon_thread
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.batch import RewardError, Scores, ScoringBatch, check_scores
from rlhf_ray.rewards.loading import load_function


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
            ConfigError: The function does not take one of them.
        """
        accepted, takes_any = _keywords(self.function)
        for name in self.arguments:
            if not takes_any and name not in accepted:
                nearest = get_close_matches(name, accepted, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"it takes {accepted}"
                raise ConfigError(
                    f"reward function {self.name!r} takes no argument {name!r}; {hint}"
                )

    async def score(self, batch: ScoringBatch, *, timeout_s: float) -> Scores:
        """Call the function once for all rows; a plain one runs in a thread of its own.

        Raises:
            RewardError: It raised, lacks an argument, took longer than `timeout_s`, or did not
                return one finite number or `None` a row.
        """
        keywords, subject = self._select(batch), f"reward function {self.name!r}"
        try:
            async with asyncio.timeout(timeout_s) as timer:
                values = await in_daemon_thread(
                    lambda: self.function(**keywords), name="reward-function"
                )
                values = await values if inspect.isawaitable(values) else values
        # The user's code may raise anything; an exit() in it must not end the actor.
        except (Exception, SystemExit) as error:
            if timer.expired():
                raise RewardError(
                    f"{subject} did not return within {timeout_s:g} s for {len(batch)} completions"
                ) from error
            raise RewardError(f"{subject} raised {type(error).__name__}: {error}") from error
        return check_scores(values, batch, subject)

    def _select(self, batch: ScoringBatch) -> dict[str, Any]:
        """The keyword arguments of a call: all there are, or those that the function names."""
        available: dict[str, Any] = {
            **batch.columns,
            **self.arguments,
            "prompts": batch.prompts_B,
            "completions": batch.completions_B,
            "completion_ids": batch.completion_ids_B,
        }
        accepted, takes_any = _keywords(self.function)
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


def load_functions(configs: Sequence[RewardFunctionConfig]) -> list[RewardFunction]:
    """Load every configured function; the second of one name is called `name_2`.

    Raises:
        ConfigError: One cannot be loaded, or does not take its arguments.
    """
    seen: Counter[str] = Counter()
    functions = []
    for config in configs:
        name = config.path.rpartition(":")[2]
        seen[name] += 1
        functions.append(
            RewardFunction(
                name=name if seen[name] == 1 else f"{name}_{seen[name]}",
                function=load_function(config.path),
                arguments=config.arguments,
                weight=config.weight,
            )
        )
    return functions


def _keywords(function: Callable[..., Any]) -> tuple[dict[str, bool], bool]:
    """Name -> whether it is required, of all keyword parameters; and whether there is `**`."""
    parameters = inspect.signature(function).parameters.values()
    accepted = {
        parameter.name: parameter.default is parameter.empty
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    return accepted, any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
