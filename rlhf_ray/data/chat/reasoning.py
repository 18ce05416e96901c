"""Blocks of reasoning in a text, `<think> ... </think>`, which a prompt may have opened."""

from __future__ import annotations

import re

_TAG = re.compile(r"<(/?)(?:think|thinking|reasoning)>")


def has_tags(text: str, start: int, stop: int) -> bool:
    """Whether a block of reasoning begins or ends between two places of a text."""
    return _TAG.search(text, start, stop) is not None


def behind_reasoning(text: str, *, is_opened: bool = False) -> str:
    """What a text says after its last block of reasoning; nothing where that is not closed.

    With `is_opened` it begins inside of a block, which its prompt has opened.
    """
    tags = list(_TAG.finditer(text))
    if not tags:
        return "" if is_opened else text
    return text[tags[-1].end() :] if tags[-1][1] else ""


def ends_open(text: str) -> bool:
    """Whether a text ends with a tag that opens a block of reasoning."""
    tail = text.rstrip()
    tags = list(_TAG.finditer(tail))
    return bool(tags) and not tags[-1][1] and tags[-1].end() == len(tail)


def within_block(text: str) -> str:
    """What a text that opens a block of reasoning first says behind the tag that opens it.

    A text without that tag which closes a block is within it from its beginning; any other has no
    reasoning, and nothing is returned.
    """
    tags = list(_TAG.finditer(text))
    if not any(tag[1] for tag in tags):
        return ""
    opens = not tags[0][1] and not text[: tags[0].start()].strip()
    return text[tags[0].end() :] if opens else text


def reasoning_of(text: str) -> str:
    """What stands in the first block of reasoning of a text that closes it."""
    tags = _TAG.finditer(within_block(text))
    closing = next((tag for tag in tags if tag[1]), None)
    return within_block(text)[: closing.start()] if closing else ""
