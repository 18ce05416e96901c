"""What a chat template wants to be given of a message: tool calls, reasoning, names of roles.

Templates disagree: some write a call's arguments by `tojson` and want an object, others put them
together with text and want a string; some see a call only in a message whose content is none,
others fail on such a message. Which of them a template is, a rendering tells.
"""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import dataclass
from typing import Any

from rlhf_ray.data.chat.borders import Tokenizer
from rlhf_ray.data.chat.probe import ASKED, PLACEHOLDER, probe
from rlhf_ray.data.chat.reasoning import behind_reasoning, reasoning_of
from rlhf_ray.data.text import REASONING, Messages
from rlhf_ray.errors import RowError


@dataclass(frozen=True, kw_only=True)
class CallForm:
    """How a template wants a message that calls tools and says nothing.

    Attributes:
        content: Its `content`.
        has_content: Whether there is one at all.
        as_text: Whether arguments are JSON text; an object otherwise.
    """

    content: str | None
    has_content: bool
    as_text: bool

    def of(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message in this form; what it says beside its calls stays."""
        formed = {**message, "tool_calls": [self._call(call) for call in message["tool_calls"]]}
        if not message["content"]:
            formed["content"] = self.content
            if not self.has_content:
                del formed["content"]
        return formed

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        if not self.as_text:
            return call
        written = json.dumps(function["arguments"], ensure_ascii=False)
        return {**call, "function": {**function, "arguments": written}}


_FORMS = [
    CallForm(content=content, has_content=has_content, as_text=as_text)
    for (content, has_content), as_text in itertools.product(
        [("", True), (None, True), (None, False)], [False, True]
    )
]


def adapted(tokenizer: Tokenizer, messages: Messages, where: str) -> list[dict[str, Any]]:
    """The messages as the tokenizer's template wants them.

    Raises:
        RowError: They call tools, and the template has no tool calls.
    """
    template = str(tokenizer.chat_template)
    shown = []
    for index, message in enumerate(messages):
        if message["role"] == "developer" and "developer" not in template:
            message = {**message, "role": "system"}
        if reasoning_of(message["content"]).strip() and _reads_reasoning(tokenizer, template):
            message = _with_reasoning_apart(message)
        if "reasoning_content" in message:
            message = {**message, **dict.fromkeys(REASONING, message["reasoning_content"])}
        if "tool_calls" in message:
            form = _call_form(tokenizer, template)
            if form is None:
                detail = f"message {index} calls a tool; set a chat_template that has tool calls"
                raise RowError(where, "the chat template has no tool calls", detail)
            num_calls = len(message["tool_calls"])
            if num_calls > 1 and not _shows_all_calls(tokenizer, template):
                detail = (
                    f"message {index} has {num_calls} of them; give each a turn of its own, with "
                    "its tool's answer, or set another chat_template"
                )
                raise RowError(where, "the chat template writes one tool call of several", detail)
            message = form.of(message)
        shown.append(message)
    return shown


def _with_reasoning_apart(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the block of reasoning in its content as what it thought before it said."""
    content = str(message["content"])
    thought = reasoning_of(content).strip("\n")
    return {
        "reasoning_content": thought,
        **message,
        "content": behind_reasoning(content).lstrip("\n"),
    }


# What templates are is found by probes, and kept by all that a caller may change of a tokenizer.
@functools.lru_cache(maxsize=16)
def _reads_reasoning(tokenizer: Tokenizer, template: str) -> bool:
    """Whether a template has a place of its own for reasoning, and no tags in the content for it.

    gpt-oss is one: `<think>` would be written into its final channel as any other words.
    """
    thinking = {"role": "assistant", "content": "So.", **dict.fromkeys(REASONING, PLACEHOLDER)}
    return "think>" not in template and PLACEHOLDER in (probe(tokenizer, [ASKED, thinking]) or "")


@functools.lru_cache(maxsize=16)
def _shows_all_calls(tokenizer: Tokenizer, template: str) -> bool:
    """Whether a template writes all calls of a message; one that refuses several says so itself."""
    form = _call_form(tokenizer, template)
    names = [PLACEHOLDER + "one", PLACEHOLDER + "two"]
    calling = _calling(*((name, {}) for name in names))
    text = probe(tokenizer, [ASKED, form.of(calling) if form else calling])
    return text is None or all(name in text for name in names)


@functools.lru_cache(maxsize=16)
def shows_tools(tokenizer: Tokenizer, template: str) -> bool:
    """Whether a template writes the tools that stand beside a chat.

    Args:
        tokenizer: Whose template it is.
        template: Its text.
    """
    schema = {"type": "object", "properties": {}}
    tool = {"name": PLACEHOLDER, "description": "Probes.", "parameters": schema}
    tools = [{"type": "function", "function": tool}]
    text = probe(tokenizer, [ASKED], tools=tools, add_generation_prompt=True)
    return text is None or PLACEHOLDER in text  # a refusal is for the row's own chat to say


@functools.lru_cache(maxsize=16)
def _call_form(tokenizer: Tokenizer, template: str) -> CallForm | None:
    """The first form in which the template writes a call's arguments, as JSON or in its own way."""
    for form in _FORMS:
        calling = form.of(_calling(("probe", {"probed": PLACEHOLDER})))
        text = probe(tokenizer, [ASKED, calling]) or ""
        # Neither a string that is written as JSON once more, nor an object as Python prints it.
        if PLACEHOLDER in text and '\\"probed' not in text and f"'{PLACEHOLDER}'" not in text:
            return form
    return None


def _calling(*functions: tuple[str, dict[str, str]]) -> dict[str, Any]:
    """A message that calls functions by their names, with arguments; ids have nine characters."""
    calls = [
        {
            "id": f"probe123{number}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for number, (name, arguments) in enumerate(functions)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}
