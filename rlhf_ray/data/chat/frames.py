"""What a chat template puts around an answer: the opened prompt before it, and the turn's end."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlhf_ray.data.chat.probe import PLACEHOLDER
from rlhf_ray.data.chat.template import ChatTemplate
from rlhf_ray.data.chat.turn_end import checked_turn_end
from rlhf_ray.data.chat.turns import renderings
from rlhf_ray.data.text import Messages
from rlhf_ray.errors import DataError, RowError

_TAG = re.compile(r"</?[^<>\s]+>")


@dataclass(frozen=True, kw_only=True)
class Frame:
    r"""What a template puts around an answer.

    Attributes:
        opened: The prompt, up to where the policy's words begin.
        context: What stands between it and the answer; of several messages, those before the last.
        lead: What the template writes before the answer: a space, or reasoning that is empty.
        text: The answer.
        end: What ends it.
    """

    opened: str
    context: str
    lead: str
    text: str
    end: str

    def written(self, text: str, *, is_ended: bool, is_foreign: bool) -> str:
        """The answer behind the opened prompt, with no space that it brings itself."""
        lead, end = self.lead, self.end
        if lead.strip() and (not is_foreign or self.brings_reasoning(text)):
            lead = ""
        if text[:1].isspace() and not lead.strip():
            lead = ""
        if text[-1:].isspace():
            end = end.lstrip()
        return self.context + lead + text + end * is_ended

    def brings_reasoning(self, text: str) -> bool:
        """Whether the text has the reasoning that the lead leaves empty, or goes on with it.

        A lead that begins by closing it says that the prompt has opened it.
        """
        closes = self.lead.lstrip().startswith("</")
        return closes or any(tag in text for tag in _TAG.findall(self.lead))


def frame_of(template: ChatTemplate, chat: Messages, prompt: Messages) -> Frame:
    """What stands around the last message of a chat whose beginning is `prompt`."""
    *context, last = chat
    shown = opened(template, prompt)
    continues = len(context) < len(prompt)
    begun = prompt[-1]["content"] if continues else ""
    before = shown if continues else opened(template, context)
    if not before.startswith(shown):
        raise _changed(template.where)
    held = [*context, {**last, "content": begun + PLACEHOLDER}]
    whole = template.render(held)
    turn, placeholder, behind = whole.rpartition(PLACEHOLDER)
    if not placeholder:
        raise _changed(template.where)
    end = checked_turn_end(template.tokenizer)
    return Frame(
        opened=shown,
        context=before[len(shown) :],
        lead="" if continues or not turn.startswith(before) else turn[len(before) :],
        text=str(last["content"])[len(begun) :],
        end=behind if end is None else end.of(behind),
    )


def rendered(template: ChatTemplate, prompt: Messages, answer: Messages) -> tuple[str, str]:
    """A prompt as the template opens it, and the answer as it writes it, to the end token."""
    if prompt[-1]["role"] == "assistant":
        return _continued(template, prompt, answer)
    chat = prompt + answer
    turns = [turn for turn in range(len(prompt), len(chat)) if chat[turn]["role"] == "assistant"]
    whole, *others = renderings(template, chat, turns)
    if others:
        raise _changed(template.where)
    shown = whole.text[: whole.spans[0][0]]
    return shown, whole.text[len(shown) : whole.spans[-1][1]]


def _continued(template: ChatTemplate, prompt: Messages, answer: Messages) -> tuple[str, str]:
    """The same, where the answer goes on with the assistant's turn."""
    end = checked_turn_end(template.tokenizer)
    shown = opened(template, prompt)
    whole = template.render_all(answered(prompt, answer))
    if not whole.startswith(shown):
        raise _changed(template.where)
    text = whole[len(shown) :]
    return shown, text if end is None else end.of(text)


def _changed(where: str) -> DataError:
    return DataError(
        f"{where}: the chat template renders a prompt differently when an answer follows, so "
        "that training would see other prompts than sampling: set another chat_template"
    )


def answered(prompt: Messages, answer: Messages) -> Messages:
    """The chat with its answer, which goes on with the assistant's turn where that is begun."""
    begun = prompt[-1]
    if begun["role"] != "assistant":
        return [*prompt, *answer]
    first, *later = answer
    return [*prompt[:-1], {**begun, "content": begun["content"] + first["content"]}, *later]


def opened(template: ChatTemplate, prompt: Messages) -> str:
    """A chat, rendered up to where the policy's own words begin."""
    *context, last = prompt
    if last["role"] != "assistant":
        return template.render_all(prompt, add_generation_prompt=True)
    if "tool_calls" in last:
        detail = "a prompt ends with the assistant's tool calls; a turn of the tool must follow"
        raise RowError(template.where, "roles out of order", detail)
    begun = template.render_all(prompt, continue_final_message=True)
    if not context or context[-1]["role"] == "assistant":
        return begun
    frame = frame_of(template, [*context, {**last, "content": ""}], context)
    if frame.lead.strip() and frame.brings_reasoning(last["content"]):
        # Reasoning that is begun: the template would close it before it was said.
        return frame.opened + str(last["content"])
    return begun
