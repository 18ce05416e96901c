"""Chat messages: checking them, and rendering them through a tokenizer's template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from rlhf_ray.data.files import Row
from rlhf_ray.data.formats import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages: TypeAlias = list[dict[str, str]]


def column(row: Row, name: str) -> Any:
    """A row's value.

    Raises:
        DataError: The row has no such column, or nothing in it.
    """
    if row.columns.get(name) is None:
        raise DataError(f"{row.where}: no column {name!r}; columns there: {sorted(row.columns)}")
    return row.columns[name]


def check_messages(row: Row, name: str, value: Any) -> Messages:
    """The value as chat messages.

    Raises:
        DataError: Not a list of objects with a `role` and a `content`, both strings.
    """
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{row.where}: column {name!r} must be a list of chat messages, "
            f"got {'an empty list' if value == [] else type(value).__name__}"
        )
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise DataError(
                f"{row.where}: message {index} of column {name!r} must have `role` and `content`, "
                f"both strings, got {_short(message)}"
            )
    return value


def require_chat_template(tokenizer: PreTrainedTokenizerBase, row: Row) -> None:
    """Refuse chat data for a tokenizer that cannot render it.

    Raises:
        DataError: The tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise DataError(
            f"{row.where}: a chat, but the tokenizer {tokenizer.name_or_path!r} has no chat "
            "template: set policy.model.chat_template to Jinja text or to a file"
        )


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], row: Row, **options: Any
) -> Any:
    """`apply_chat_template` with errors that name the row; what it returns depends on `options`.

    Raises:
        DataError: The template refuses these messages (roles that do not alternate, say).
    """
    import jinja2

    try:
        return tokenizer.apply_chat_template(list(messages), **options)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise DataError(f"{row.where}: the chat template refuses this chat: {error}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
