"""Texts and chats: their types, and what their parts are called."""

from __future__ import annotations

from typing import Any, TypeAlias

Messages: TypeAlias = list[dict[str, Any]]
Text: TypeAlias = str | Messages
# What data sets and templates call the reasoning of a message.
REASONING = ("reasoning_content", "reasoning", "thinking")
# Who answers, as most data sets say it: no conversation begins so.
ASSISTANTS = ("assistant", "gpt", "model")


def as_chat(text: Text, role: str) -> Messages:
    """A chat; a string becomes one message of `role`."""
    return [{"role": role, "content": text}] if isinstance(text, str) else text
