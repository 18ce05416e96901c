"""Rendering chat messages through a tokenizer's template."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.data.chat.borders import Tokenizer
from rlhf_ray.data.chat.tool_calls import adapted, shows_tools
from rlhf_ray.data.json_values import unfolded
from rlhf_ray.data.text import Messages
from rlhf_ray.errors import DataError, RowError, short

# What templates that write a date (gpt-oss, Llama 3.2) take for today: the rows of a run are the
# same ones when it is resumed on another day, or started again from the same seed.
TODAY = datetime.datetime(2025, 1, 1)


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
        shown = adapted(tokenizer, messages, self.where)
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
