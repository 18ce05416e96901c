"""Python functions as tools: shown to the policy, called for it, and answered to it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rlhf_ray.deadlines import DeadlineError, deadline, in_daemon_thread
from rlhf_ray.environments.protocol import Message, Step, readable
from rlhf_ray.environments.tool_calls import PARSERS, ToolCall, ToolParser
from rlhf_ray.errors import ConfigError, RlhfRayError
from rlhf_ray.types import Prompt

Function: TypeAlias = Callable[..., Any]
_MOST_ERROR_CHARACTERS = 500


class ToolError(Exception):
    """What went wrong in a call, in words for the policy."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One that a policy may call.

    Attributes:
        schema: As chat templates take it, in OpenAI's form.
        function: Takes a call's arguments by name; may be async.
    """

    schema: dict[str, Any]
    function: Function

    @property
    def name(self) -> str:
        """By which it is called."""
        return str(self.schema["function"]["name"])

    @classmethod
    def of(cls, function: Function) -> Tool:
        """A function's, which refuses arguments of another kind than its hints.

        Raises:
            ConfigError: It has no type hints, or no docstring.
        """
        return cls(schema=_schema(function), function=_checked(function))


class ToolEnvironment:
    """An environment whose world is a few functions; an answer that calls none of them is the last.

    A function has type hints and a docstring with its arguments, in Google's style. It may be
    async. What it raises, a result that JSON cannot write, a missed deadline, a call that cannot be
    read, an unknown name and arguments of another kind are messages to the policy, which may try
    again. It gives no rewards of its own: the job's reward functions see all messages. A subclass
    can: it overrides `step`.

    A function that has to be stopped belongs into a process (see `rlhf_ray/sandbox/`): a thread
    goes on after its deadline.
    """

    def __init__(
        self,
        functions: Sequence[Function],
        *,
        parser: str | ToolParser = "hermes",
        call_timeout_s: float = 10.0,
    ) -> None:
        """Tools of these functions.

        Args:
            functions: By their own names.
            parser: How the policy writes its calls: `hermes` (and Qwen), `harmony` (gpt-oss), or
                what reads another form.
            call_timeout_s: For each call.

        Raises:
            ConfigError: A function has no type hints, no docstring, or another's name; or there is
                no such parser.
        """
        self._tools = by_name(map(Tool.of, functions))
        if isinstance(parser, str) and parser not in PARSERS:
            raise ConfigError(f"parser must be one of {', '.join(PARSERS)}, got {parser!r}")
        self._parser = PARSERS[parser]() if isinstance(parser, str) else parser
        self._call_timeout_s = call_timeout_s

    @property
    def tools(self) -> list[dict[str, Any]]:
        """JSON schemas of the functions, as chat templates take them."""
        return [tool.schema for tool in self._tools.values()]

    async def reset(self, prompt: Prompt, seed: int) -> None:
        """Nothing: functions have no state of a rollout, unless a subclass gives them one."""

    async def step(self, answer: str) -> Step:
        """What the called functions return, one message a call; without calls it is over."""
        calls = self._parser.calls(answer)
        messages, num_failed = [], 0
        for number, call in enumerate(calls):
            content, is_failed = await self._result(call)
            num_failed += is_failed
            messages.append(_message(call, number, content))
        return Step(
            messages=tuple(messages),
            is_done=not calls,
            num_calls=len(calls),
            num_failed_calls=num_failed,
        )

    async def close(self) -> None:
        """Nothing."""

    async def _result(self, call: ToolCall) -> tuple[str, bool]:
        """What the call returned or what was wrong, and whether anything was."""
        if call.fault:
            return _error(call.fault), True
        tool = self._tools.get(call.name)
        if tool is None:
            known = ", ".join(self._tools)
            return _error(f"there is no tool {call.name!r}, only {known}"), True
        function = tool.function
        try:
            async with deadline(self._call_timeout_s, actor=call.name, operation="a call"):
                if inspect.iscoroutinefunction(function):
                    return _written(await function(**call.arguments)), False
                return await in_daemon_thread(
                    lambda: _written(function(**call.arguments)), name=f"tool {call.name}"
                ), False
        except DeadlineError:
            return _error(f"{call.name} took more than {self._call_timeout_s:g} s"), True
        except RlhfRayError:
            raise  # of this library, not of the call: a machine without a sandbox, say
        except ToolError as error:
            return _error(str(error)), True
        # A tool may raise anything, SystemExit as well, or give what JSON cannot write: the policy
        # is told what.
        except (Exception, SystemExit) as error:
            return _error(f"{type(error).__name__}: {error}"), True


def by_name(tools: Iterable[Tool]) -> dict[str, Tool]:
    """Each by its name, in their order.

    Raises:
        ConfigError: Two have the same.
    """
    tools = list(tools)
    named = {tool.name: tool for tool in tools}
    if len(named) < len(tools):
        names = [tool.name for tool in tools]
        raise ConfigError(f"tools must have different names, got {names}")
    return named


def _schema(function: Function) -> dict[str, Any]:
    from transformers.utils import get_json_schema

    try:
        schema: dict[str, Any] = get_json_schema(function)
    # transformers has an exception of its own for each thing that is missing.
    except Exception as error:
        name = getattr(function, "__name__", repr(function))
        raise ConfigError(
            f"the tool {name!r} must have type hints, and a docstring that says what it and each "
            f"of its arguments is: {error}"
        ) from error
    schema["function"].pop("return", None)  # no part of OpenAI's form, which calls are trained in
    return schema


def _checked(function: Function) -> Function:
    """The same, refusing arguments that are missing, unknown, or of another kind than its hints."""
    from pydantic import ConfigDict, validate_call

    return validate_call(config=ConfigDict(arbitrary_types_allowed=True))(function)


def _message(call: ToolCall, number: int, content: str) -> Message:
    name = readable(call.name) or "unknown"
    return {
        "role": "tool",
        "name": name,
        "tool_call_id": f"call{number:05d}",  # nine characters, as Mistral's templates want
        "content": readable(content),
    }


def _written(result: Any) -> str:
    if isinstance(result, str):
        return result
    return json.dumps(result, ensure_ascii=False, default=str)


def _error(text: str) -> str:
    return f"error: {text[:_MOST_ERROR_CHARACTERS]}"
