"""The assistant's turns in a rendered chat: each behind exactly what a policy sees when it answers.

A turn's context is the chat before it, rendered and opened for an answer. Where a template renders
that chat alike whatever follows (ChatML), the whole chat is one text in which every turn has its
place. Where it does not (reasoning of earlier turns is dropped, the last turn ends otherwise), a
turn that no longer stands so in the later text gets a text of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_ray.data.chat.reasoning import ends_open, reasoning_of, within_block
from rlhf_ray.data.chat.template import PLACEHOLDER, ChatTemplate
from rlhf_ray.data.chat.turn_end import checked_turn_end
from rlhf_ray.data.json_values import Messages
from rlhf_ray.errors import RowError, short

_TAG = "(?:think|thinking|reasoning)"
# Reasoning that is closed at once, or was opened elsewhere.
_EMPTY_BLOCK = re.compile(rf"(?:<{_TAG}>\s*)?</{_TAG}>\s*$")
_CLOSED = re.compile(rf"</{_TAG}>\s*$")
_QUESTION = {"role": "user", "content": PLACEHOLDER}


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """A text, and where turns of the assistant stand in it, each with what ends it.

    Attributes:
        text: Of a chat, or of its beginning.
        spans: Begin and end of each turn, in characters.
    """

    text: str
    spans: tuple[tuple[int, int], ...]

    def up_to(self, end: int) -> Rendering:
        """Its beginning, of so many characters at most."""
        spans = ((first, min(last, end)) for first, last in self.spans if first < end)
        return Rendering(text=self.text[:end], spans=tuple(spans))


def renderings(template: ChatTemplate, chat: Messages, turns: Sequence[int]) -> Iterator[Rendering]:
    """A chat as few texts, in which each of these turns stands once behind its own context.

    The turns are indices of messages of the assistant, rising.

    Raises:
        DataError: No template, or one whose end of a turn is no token.
        RowError: The template refuses the chat or leaves out a message, or does not write a turn
            where a policy would.
    """
    checked_turn_end(template.tokenizer)
    text = ""
    spans: list[tuple[int, int]] = []
    last = -1
    for turn in turns:
        opened, written = _turn(template, chat[:turn], chat[turn], turn)
        if spans and not opened.startswith(text):
            template.check_all_there(chat[: last + 1], text)
            yield Rendering(text=text, spans=tuple(spans))
            spans = []
        text, last = opened + written, turn
        spans.append((len(opened), len(text)))
    template.check_all_there(chat[: last + 1], text)
    # What follows the last turn is there as well, where the template leaves the rest as it is.
    whole = template.render(chat)
    if whole.startswith(text):
        template.check_all_there(chat, whole)
        text = whole
    yield Rendering(text=text, spans=tuple(spans))


def _turn(
    template: ChatTemplate, context: Messages, turn: dict[str, Any], index: int
) -> tuple[str, str]:
    """The context of a turn as it is opened for an answer, and the turn, up to its end."""
    whole = template.render([*context, turn])
    if context:
        opened = template.render(context, add_generation_prompt=True)
        if _CLOSED.search(opened) and _thought(turn):
            advice = ["take it away", "set another chat_template"]
            advice += _variable(
                template, True, lambda variant: not _CLOSED.search(_opened(variant))
            )
            detail = f"message {index} has reasoning: {_either(advice)}"
            reason = "the chat template closes the reasoning before an answer"
            raise RowError(template.where, reason, detail)
    else:
        # An empty chat cannot be opened: what stands before the assistant's first words is taken.
        held = template.render([{**turn, "content": PLACEHOLDER}])
        opened = held.rpartition(PLACEHOLDER)[0] if PLACEHOLDER in held else held
    written = (
        _behind(opened, whole)
        or _behind_last_message(template, context, turn)
        or _behind_generation_prompt(template, opened, context, turn)
    )
    if written is None:
        raise _not_there(template, opened, index)
    end = checked_turn_end(template.tokenizer)
    written = written if end is None else end.of(written)
    _check_ended(template, written, index)
    check_reasoning(template, written, turn, index)
    return opened, written


def _behind(front: str, text: str) -> str | None:
    return text[len(front) :] if text.startswith(front) else None


def _behind_last_message(
    template: ChatTemplate, context: Messages, turn: dict[str, Any]
) -> str | None:
    """The turn, where an earlier message is rendered differently once the turn follows.

    gpt-oss drops the analysis before a tool call as soon as a final answer is there, which a policy
    still sees when it answers.
    """
    if not context:
        return None
    held = [*context[:-1], {**context[-1], "content": PLACEHOLDER}]
    opened = template.render(held, add_generation_prompt=True).rpartition(PLACEHOLDER)
    whole = template.render([*held, turn]).rpartition(PLACEHOLDER)
    return _behind(opened[2], whole[2]) if opened[1] and whole[1] else None


def _behind_generation_prompt(
    template: ChatTemplate, opened: str, context: Messages, turn: dict[str, Any]
) -> str | None:
    """The turn, where opening an answer writes more than stands before one that is there.

    DeepSeek-R1 opens an answer by `<think>` and renders answers without: a policy goes on behind
    that tag, so the turn's reasoning does. V3.1 renders them behind `</think>` even then.
    """
    held = template.render([*context, {**turn, "content": PLACEHOLDER}])
    front, placeholder, end = held.rpartition(PLACEHOLDER)
    if ends_open(opened):
        front = _EMPTY_BLOCK.sub("", front)
    more = _behind(front, opened)
    if not placeholder or more is None:
        return None
    written = str(turn["content"])
    if ends_open(more):
        if "reasoning_content" in turn:
            written = f"{turn['reasoning_content']}\n</think>\n\n{written}"
        written = within_block(written)
        if opened[-1:].isspace():
            written = written.lstrip("\n")
        if not written:
            return None
    return written + end


def _check_ended(template: ChatTemplate, written: str, index: int) -> None:
    """Refuse a turn without an end token where the template has one: it would never end."""
    end = checked_turn_end(template.tokenizer)
    if end is None or end.token_id is None or written.endswith(end.text):
        return
    tokenizer = template.tokenizer
    marks = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    if not written.rstrip().endswith(tuple(marks)):
        detail = f"message {index} ends with {short(written[-30:])}; set another chat_template"
        raise RowError(template.where, "the chat template does not end this turn", detail)


def check_reasoning(
    template: ChatTemplate,
    written: str,
    turn: dict[str, Any],
    index: int,
    *,
    more: Sequence[str] = (),
) -> None:
    """Refuse a turn that is rendered without its reasoning: it would not be trained.

    Raises:
        RowError: It is not in `written`; `more` says what else could be done.
    """
    thought = _thought(turn)
    if thought and thought not in "".join(written.split()):
        within = ["write it into `content` as <think>...</think>"] * ("reasoning_content" in turn)
        answer = {"role": "assistant", "content": PLACEHOLDER, "reasoning_content": thought}
        shown = _variable(
            template, True, lambda variant: thought in variant.render([_QUESTION, answer])
        )
        advice = [*within, "take it away", *more, "set another chat_template", *shown]
        detail = f"that of message {index}: {_either(advice)}"
        raise RowError(template.where, "the chat template leaves out the reasoning", detail)


def _either(ways: Sequence[str]) -> str:
    return f"{', '.join(ways[:-1])} or {ways[-1]}"


def _opened(template: ChatTemplate) -> str:
    return template.render([_QUESTION], add_generation_prompt=True)


def _variable(
    template: ChatTemplate, value: bool, fits: Callable[[ChatTemplate], bool]
) -> Iterator[str]:
    """How to tell a template what makes it fit, where it has a variable for that."""
    for name in ("enable_thinking", "thinking"):
        variant = replace(template, options={**template.options, name: value})
        try:
            if fits(variant) and not fits(template):
                line = f"{{{name}: {str(value).lower()}}}"
                yield f"have this one do otherwise (a column chat_template_kwargs: {line})"
                return
        except RowError:
            continue


def _thought(turn: dict[str, Any]) -> str:
    """A turn's reasoning without its space, wherever the data has it."""
    return "".join((turn.get("reasoning_content") or reasoning_of(turn["content"])).split())


def _not_there(template: ChatTemplate, opened: str, index: int) -> RowError:
    if ends_open(opened):
        tag = opened[opened.rindex("<") :].rstrip()
        advice = [f"write it in front of the answer as {tag}...</{tag[1:]}"]
        advice += ["set a chat_template that does not open any"]
        advice += _variable(template, False, lambda variant: not ends_open(_opened(variant)))
        detail = (
            f"the chat template opens an answer by {tag!r}, and message {index} has no reasoning: "
            + _either(advice)
        )
        return RowError(template.where, "an answer without reasoning", detail)
    detail = (
        f"so that message {index} would be trained behind another prompt than sampling has: set "
        "chat_template to one that leaves a prompt as it is (chatml, llama3, zephyr, ...), or put "
        "{% generation %} and {% endgeneration %} around the assistant's turn in it"
    )
    reason = "the chat template renders a prompt differently when an answer follows"
    return RowError(template.where, reason, detail)
