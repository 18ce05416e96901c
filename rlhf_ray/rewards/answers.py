r"""Where a response gives its answer: behind its reasoning, in `\boxed{}`, after words."""

from __future__ import annotations

import re
from dataclasses import dataclass

_END_TOKEN = re.compile(r"(?:<\|[^<>|]*\|>|</s>|<eos>|<end_of_turn>)\Z")
_REASONING = re.compile(r"<(/?)(?:think|thinking|reasoning)>")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_PHRASE = re.compile(r"\banswer\b[^\n.:=0-9]{0,40}?(?:\bis\b|:|=)(?:\s|\*)*", re.IGNORECASE)
# Behind an answer these take it back.
_RECANTS = re.compile(
    r"\b(?:wait|actually|correction|mistake|sorry|oops|incorrect|wrong|hmm|no,)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Marked:
    """Text that a response marks as its answer.

    Attributes:
        begin: Where the mark begins in the response.
        end: Where the marked text ends.
    """

    text: str
    begin: int
    end: int


def without_reasoning(text: str) -> str:
    """What a response says after its last block of reasoning; nothing where that is not closed.

    End tokens behind it are left out as well.
    """
    text = text.rstrip()
    while token := _END_TOKEN.search(text):
        text = text[: token.start()].rstrip()
    tags = list(_REASONING.finditer(text))
    if not tags:
        return text
    return text[tags[-1].end() :] if tags[-1][1] else ""


def last_boxed(text: str) -> Marked | None:
    r"""The last `\boxed{...}`, braces balanced; its text is empty where it is not closed."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    begin, start = boxes[-1].span()
    # A box around a box is one: `\boxed{\boxed{42}}`.
    depth = 1
    for position in range(start, len(text)):
        escaped = text[position - 1] == "\\"
        depth += 0 if escaped else (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return Marked(text=text[start:position].strip(), begin=begin, end=position + 1)
    return Marked(text="", begin=begin, end=len(text))


def last_phrase(text: str) -> Marked | None:
    """The rest of the line, or the next one, after the last "answer is" or "answer:"."""
    phrases = list(_PHRASE.finditer(text))
    if not phrases:
        return None
    begin, start = phrases[-1].span()
    line = text[start:].partition("\n")[0]
    return Marked(text=line, begin=begin, end=start + len(line))


def is_recanted(behind: str) -> bool:
    """Whether what a response says behind its answer takes it back."""
    return bool(_RECANTS.search(behind))
