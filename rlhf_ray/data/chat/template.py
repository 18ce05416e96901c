"""Rendering chat messages through a tokenizer's template, given what that template wants.

Templates disagree: some write a call's arguments by `tojson` and want an object, others put them
together with text and want a string; some see a call only in a message whose content is none,
others fail on such a message. Which of them a template is, a rendering tells: its own text says
nothing certain about it.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.data.chat.borders import Tokenizer
from rlhf_ray.data.chat.reasoning import behind_reasoning, reasoning_of
from rlhf_ray.data.json_values import REASONING, Messages, unfolded
from rlhf_ray.errors import DataError, RowError, short

# What templates that write a date (gpt-oss, Llama 3.2) take for today: the rows of a run are the
# same ones when it is resumed on another day, or started again from the same seed.
TODAY = datetime.datetime(2025, 1, 1)
# Stands for an answer in a rendering. No template trims, splits or parses a plain word.
PLACEHOLDER = "Rlhfrayanswer"
ASKED = {"role": "user", "content": "Why?"}


def probe(tokenizer: Tokenizer, chat: Sequence[Mapping[str, Any]], **options: Any) -> str | None:
    """A chat as the tokenizer's template writes it; None where the template refuses it."""
    import jinja2

    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, **options))
    except (jinja2.TemplateError, TypeError, ValueError):
        return None


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A tokenizer's chat template, for the chat of one row.

    Attributes:
        tokenizer: Whose template it is.
        where: File and line, for errors.
        options: What the template gets beside the messages: `tools`, `enable_thinking`, ...
    """

    tokenizer: Tokenizer
    where: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def render(self, messages: Messages, **how: bool) -> str:
        """The text of a chat; `how` as `apply_chat_template` has it.

        Raises:
            DataError: The tokenizer has no chat template.
            RowError: The template refuses these messages.
        """
        return str(self.apply(messages, tokenize=False, **how))

    def render_all(self, messages: Messages, **how: bool) -> str:
        """The same, of a chat all of whose messages must be there.

        Raises:
            DataError: The tokenizer has no chat template.
            RowError: The template refuses these messages, or leaves one out.
        """
        text = self.render(messages, **how)
        self.check_all_there(messages, text)
        return text

    def check_all_there(self, messages: Messages, text: str) -> None:
        """Refuse a rendering without one of its messages, as templates for a single turn give.

        Raises:
            RowError: It lacks one.
        """
        if missing := _left_out(messages, text):
            reason = "the chat template leaves out a message of this chat"
            raise RowError(self.where, reason, f"{missing}; set another chat_template")

    def apply(self, messages: Messages, **how: bool) -> Any:
        """`apply_chat_template` with errors that name the row; what it returns depends on `how`.

        Raises:
            DataError: The tokenizer has no chat template.
            RowError: The template refuses these messages (roles that it does not know, say).
        """
        import jinja2

        tokenizer = self.tokenizer
        if not tokenizer.chat_template:
            raise DataError(
                f"{self.where}: a chat, but the tokenizer {tokenizer.name_or_path!r} has no chat "
                "template: set the model's chat_template to a name (chatml, alpaca, ...), Jinja "
                "text or a file"
            )
        shown = _adapted(tokenizer, messages, self.where)
        if "tools" in self.options and not shows_tools(tokenizer, str(tokenizer.chat_template)):
            detail = (
                "set a chat_template that has, or write them into the system's text and leave the "
                "column 'tools' empty"
            )
            raise RowError(self.where, "the chat template has no place for tools", detail)
        try:
            return tokenizer.apply_chat_template(
                shown, **{"strftime_now": TODAY.strftime, **self.options}, **how
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(message["role"] for message in messages[:12])
            refusal = " ".join(str(error).split())[:300]
            detail = f"{refusal} (the roles: {roles}{', ...' * (len(messages) > 12)})"
            raise RowError(self.where, "the chat template refuses this chat", detail) from error


def _left_out(messages: Sequence[dict[str, Any]], text: str) -> str:
    """The first message that a rendering lacks, in words; empty where all are there.

    Templates may change space, put the system's message elsewhere, write a tool's answer as JSON,
    and leave out an assistant's reasoning; what was asked and answered stands in its order.
    """
    text, place = _dense(text), 0
    for index, message in enumerate(messages):
        is_anywhere = message["role"] in ("system", "developer")
        calls = [call["function"]["name"] for call in message.get("tool_calls", ())]
        if lost := next((name for name in _own_tools(message) if _dense(name) not in text), ""):
            return f"the tool {lost!r} of message {index}: write it into a column `tools`"
        for part in (message["content"].rpartition("</think>")[2], *calls):
            end = _end_of(part, text, 0 if is_anywhere else place)
            if end < 0:
                what = f"its call of {part!r}" if part in calls else short(part)
                return f"message {index}, of the role {message['role']!r}: {what}"
            place = place if is_anywhere else end
    return ""


def _own_tools(message: Mapping[str, Any]) -> Iterator[str]:
    """Names of the tools that stand within a message, as GLM's template reads them."""
    tools = unfolded(message.get("tools"))
    for tool in tools if isinstance(tools, list) else []:
        schema = tool.get("function", tool) if isinstance(tool, dict) else {}
        if isinstance(schema, dict) and isinstance(schema.get("name"), str):
            yield schema["name"]


def _end_of(part: str, text: str, place: int) -> int:
    """Where a saying ends in a text without space; -1 where it is not there."""
    dense = _dense(part)
    if (at := text.find(dense, place)) >= 0:
        return at + len(dense)
    written = _dense(json.dumps(part, ensure_ascii=False)[1:-1])
    at = text.find(written, place)
    return at + len(written) if at >= 0 else -1


def _dense(text: str) -> str:
    return "".join(text.split())


@dataclass(frozen=True)
class CallForm:
    """How a template wants a message that calls tools.

    Attributes:
        empty: The `content` of one that says nothing; empty itself where there must be none.
        as_text: Whether arguments are JSON text; an object otherwise.
    """

    empty: Mapping[str, str | None]
    as_text: bool

    def of(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message in this form; what it says beside its calls stays."""
        calls = [self._call(call) for call in message["tool_calls"]]
        formed = {**message, **self.empty, "tool_calls": calls}
        if message["content"]:
            formed["content"] = message["content"]
        elif not self.empty:
            del formed["content"]
        return formed

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        if not self.as_text:
            return call
        written = json.dumps(function["arguments"], ensure_ascii=False)
        return {**call, "function": {**function, "arguments": written}}


_EMPTY: tuple[Mapping[str, str | None], ...] = ({"content": ""}, {"content": None}, {})
_FORMS = [CallForm(empty, as_text) for empty in _EMPTY for as_text in (False, True)]


def _adapted(tokenizer: Tokenizer, messages: Messages, where: str) -> list[dict[str, Any]]:
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
    """Whether a template writes the tools that stand beside a chat."""
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


def writes_calls(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer's template writes a message's calls of tools."""
    return _call_form(tokenizer, str(tokenizer.chat_template)) is not None


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
