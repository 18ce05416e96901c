"""Calls of tools in what a policy says: the forms of Hermes and gpt-oss, a Protocol for others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_OPENED, _CLOSED = "<tool_call>", "</tool_call>"
# Behind an opening tag up to the closing one, or to the end where it was forgotten.
_BLOCK = re.compile(rf"{_OPENED}(.*?)(?:{_CLOSED}|\Z)", re.DOTALL)
# Stands between the head of a message and its text.
_MESSAGE = "<|message|>"
# What a head may have before and behind the function that it names.
_IN_HEAD = re.compile(r"<\|(?:channel|constrain)\|>")
_FUNCTION = re.compile(r"to=functions\.([\w.-]+)")


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call as the policy wrote it.

    Attributes:
        name: Of the tool; empty where it could not be read.
        arguments: By name.
        fault: What is wrong with it, in words for the policy; empty for a sound one.
    """

    name: str
    arguments: Mapping[str, Any]
    fault: str = ""


class ToolParser(Protocol):
    """How a family of models writes its calls."""

    def calls(self, answer: str) -> Sequence[ToolCall]:
        """The calls of an answer in their order; none where it calls nothing."""
        ...


class HermesParser:
    r"""Calls as JSON between tags, which Hermes, Qwen2.5, Qwen3 and others write.

    Example: `<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>`.
    """

    def calls(self, answer: str) -> list[ToolCall]:
        """Those behind the last block of reasoning: in it a policy only thinks of them."""
        said = answer.rpartition("</think>")[2]
        return [_call(block.strip()) for block in _BLOCK.findall(said)]


class HarmonyParser:
    r"""Calls as messages to functions, which gpt-oss writes.

    Example: `<|start|>assistant to=functions.add<|channel|>commentary json<|message|>{"x": 1}`.
    Source: https://cookbook.openai.com/articles/openai-harmony, function calling.
    """

    def calls(self, answer: str) -> list[ToolCall]:
        """One at most: a message to a function ends a turn."""
        # One pattern for all of it would try each beginning of a head that never ends.
        behind, *parts = answer.split(_MESSAGE)
        calls = []
        for part in parts:
            head = _IN_HEAD.sub(" ", behind).rpartition("<")[2]
            text, _, behind = part.partition("<|")
            if named := _FUNCTION.search(head):
                calls.append(_named(named[1], text.strip()))
        return calls


# By the names that configurations have for them.
PARSERS: Mapping[str, Callable[[], ToolParser]] = {
    "hermes": HermesParser,
    "harmony": HarmonyParser,
}


def _call(text: str) -> ToolCall:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _unreadable("", f"no JSON: {error}")
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return _unreadable("", "it must be an object with a name and arguments")
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        return _unreadable(value["name"], "its arguments must be an object")
    return ToolCall(name=value["name"], arguments=arguments)


def _named(name: str, text: str) -> ToolCall:
    """A call whose arguments alone are JSON."""
    return _call(f'{{"name": {json.dumps(name)}, "arguments": {text or "{}"}}}')


def _unreadable(name: str, fault: str) -> ToolCall:
    return ToolCall(name=name, arguments={}, fault=f"the call could not be read: {fault}")
