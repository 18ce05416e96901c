"""What a chat template does, found by rendering: its own text says nothing certain about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_ray.data.chat.borders import Tokenizer

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
