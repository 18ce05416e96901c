"""vLLM's parsers of tool calls, by the names that `vllm serve --tool-call-parser` has for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_ray.environments.tool_calls import ToolCall
from rlhf_ray.errors import ConfigError


class VllmParser:
    """A `ToolParser` over one of vLLM's; what that cannot read is an answer without calls."""

    def __init__(self, name: str, tokenizer: Any, tools: Sequence[Mapping[str, Any]]) -> None:
        """The parser of that name.

        Args:
            name: `llama3_json`, `mistral`, `pythonic`, ...
            tokenizer: The policy's.
            tools: JSON schemas, as chat templates take them.

        Raises:
            ConfigError: vLLM has none of that name, or the tokenizer lacks its tokens.
        """
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.tool_parsers import ToolParserManager

        self._tokenizer = tokenizer
        self._request = ChatCompletionRequest.model_validate(
            {"messages": [], "tools": [dict(tool) for tool in tools]}
        )
        try:
            self._kind: Any = ToolParserManager.get_tool_parser(name)
            self._made()
        # vLLM raises KeyError, RuntimeError and others, by the parser.
        except Exception as error:
            raise ConfigError(f"tool parser {name!r} of vLLM cannot be used: {error}") from error

    def calls(self, answer: str) -> list[ToolCall]:
        """The calls of an answer in their order."""
        found = self._made().extract_tool_calls(answer, self._request)
        return [_call(call.function.name, call.function.arguments) for call in found.tool_calls]

    def _made(self) -> Any:
        """A new one: it keeps what it read of an answer."""
        return self._kind(self._tokenizer, self._request.tools)


def _call(name: str, text: str) -> ToolCall:
    try:
        arguments = json.loads(text or "{}")
    except ValueError as error:
        return ToolCall(name=name, arguments={}, fault=f"the call could not be read: {error}")
    if not isinstance(arguments, dict):
        fault = "the call could not be read: its arguments must be an object"
        return ToolCall(name=name, arguments={}, fault=fault)
    return ToolCall(name=name, arguments=arguments)
