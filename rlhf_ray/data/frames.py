"""What a chat template puts around an answer: the opened prompt before it, and the turn's end."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_ray.data.chat import render, render_all
from rlhf_ray.data.errors import DataError
from rlhf_ray.data.fields import Messages
from rlhf_ray.data.turn_end import PLACEHOLDER, checked_turn_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


def frame_of(
    tokenizer: PreTrainedTokenizerBase, chat: Messages, prompt: Messages, where: str
) -> Frame:
    """What stands around the last message of a chat whose beginning is `prompt`."""
    *context, last = chat
    shown = opened(tokenizer, prompt, where)
    continues = len(context) < len(prompt)
    begun = prompt[-1]["content"] if continues else ""
    before = shown if continues else opened(tokenizer, context, where)
    if not before.startswith(shown):
        raise _changed(where)
    held = [*context, {**last, "content": begun + PLACEHOLDER}]
    whole = render(tokenizer, held, where)
    turn, placeholder, behind = whole.rpartition(PLACEHOLDER)
    if not placeholder:
        raise _changed(where)
    end = checked_turn_end(tokenizer)
    return Frame(
        opened=shown,
        context=before[len(shown) :],
        lead="" if continues or not turn.startswith(before) else turn[len(before) :],
        text=str(last["content"])[len(begun) :],
        end=behind if end is None else behind.removesuffix(end.rest),
    )


def rendered(
    tokenizer: PreTrainedTokenizerBase, prompt: Messages, answer: Messages, where: str
) -> tuple[str, str]:
    """A prompt as the template opens it, and the answer as it writes it, to the end token."""
    end = checked_turn_end(tokenizer)
    shown = opened(tokenizer, prompt, where)
    whole = render_all(tokenizer, answered(prompt, answer), where)
    if not whole.startswith(shown):
        raise _changed(where)
    said = whole[len(shown) :]
    if end is not None and said.endswith(end.text + end.rest):
        said = said[: len(said) - len(end.rest)]
    return shown, said


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
    said, *later = answer
    return [*prompt[:-1], {**begun, "content": begun["content"] + said["content"]}, *later]


def opened(tokenizer: PreTrainedTokenizerBase, prompt: Messages, where: str) -> str:
    """A chat, rendered up to where the policy's own words begin."""
    *context, last = prompt
    if last["role"] != "assistant":
        return render_all(tokenizer, prompt, where, add_generation_prompt=True)
    begun = render_all(tokenizer, prompt, where, continue_final_message=True)
    if not context or context[-1]["role"] == "assistant":
        return begun
    frame = frame_of(tokenizer, [*context, {**last, "content": ""}], context, where)
    if frame.lead.strip() and frame.brings_reasoning(last["content"]):
        # Reasoning that is begun: the template would close it before it was said.
        return frame.opened + str(last["content"])
    return begun
