"""Rendering chat messages through a tokenizer's template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf_ray.data.errors import DataError, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    where: str,
    **options: bool,
) -> str:
    """The text of a chat; `options` are those of `apply_chat_template`.

    Raises:
        DataError: The tokenizer has no chat template.
        RowError: The template refuses these messages.
    """
    return str(apply_template(tokenizer, messages, where, tokenize=False, **options))


def render_all(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    where: str,
    **options: bool,
) -> str:
    """The same, of a chat all of whose messages must be there.

    Raises:
        DataError: The tokenizer has no chat template.
        RowError: The template refuses these messages, or leaves one out.
    """
    text = render(tokenizer, messages, where, **options)
    check_all_there(messages, text, where)
    return text


def check_all_there(messages: Sequence[dict[str, Any]], text: str, where: str) -> None:
    """Refuse a rendering without one of its messages, as templates for a single turn give.

    Raises:
        RowError: It lacks one.
    """
    if missing := _left_out(messages, text):
        raise RowError(where, "the chat template leaves out a message of this chat", missing)


def apply_template(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    where: str,
    **options: bool,
) -> Any:
    """`apply_chat_template` with errors that name the row; what it returns depends on `options`.

    Raises:
        DataError: The tokenizer has no chat template.
        RowError: The template refuses these messages (roles that it does not know, say).
    """
    import jinja2

    if not tokenizer.chat_template:
        raise DataError(
            f"{where}: a chat, but the tokenizer {tokenizer.name_or_path!r} has no chat template: "
            "set the model's chat_template to a name (chatml, alpaca, ...), Jinja text or a file"
        )
    try:
        return tokenizer.apply_chat_template(list(messages), **options)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise RowError(where, "the chat template refuses this chat", str(error)) from error


def _left_out(messages: Sequence[dict[str, Any]], text: str) -> str:
    """The first message that a rendering lacks, in words; empty where all are there.

    Templates may change space, put the system's message elsewhere, and leave out an assistant's
    reasoning; what was asked and answered stands in its order.
    """
    text, place = _dense(text), 0
    for index, message in enumerate(messages):
        said = _dense(str(message["content"]).rpartition("</think>")[2])
        if message["role"] == "system":
            found = said in text
        elif message["role"] in ("user", "assistant"):
            at = text.find(said, place)
            found, place = at >= 0, at + len(said)
        else:
            continue
        if not found:
            return f"message {index}, of the role {message['role']!r}"
    return ""


def _dense(text: str) -> str:
    return "".join(text.split())
