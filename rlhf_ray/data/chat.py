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
    **options: Any,
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
