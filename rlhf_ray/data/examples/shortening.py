"""Texts cut behind what truncation keeps, so that a book is not tokenized for its first page.

Tokens of a text's beginning are those of the whole text but for the last few, which depend on what
follows; tokens of its end likewise but for the first few, where it is cut in front of space. How
many characters hold enough of them is found by tokenizing more and more.
"""

from __future__ import annotations

from dataclasses import replace

from rlhf_ray.data.chat.borders import Tokenizer, word_border, written_tokens
from rlhf_ray.data.chat.reasoning import has_tags
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.data.text import Text

# Around a cut tokens may be others than in the whole text. A word of as many is rare.
_UNSETTLED_TOKENS = 256
# The same of two texts that follow one another.
_BORDER_TOKENS = 4
# Tried first. More characters a token than most texts have, so that once is mostly enough.
_CHARACTERS_A_TOKEN, _LEAST_CHARACTERS = 8, 4096
# Left of a text that lies behind what is kept: a chat's message may not be empty.
_STUB_CHARACTERS = 64


def beginning_of_sample(sample: Sample, num_tokens: int, tokenizer: Tokenizer) -> Sample:
    """The sample with the first tokens of its prompt and best answer together; see `beginning`."""
    prompt: Text = "" if sample.prompt is None else sample.prompt
    answer, *others = sample.answers_K or ("",)
    whole = "\n".join([*_contents(prompt), *_contents(answer)])
    num_texts = len(_contents(prompt)) + len(_contents(answer))
    room = _enough(whole, num_tokens, num_texts, tokenizer, at_end=False)
    kept_prompt, room = _first(prompt, room)
    kept_answer, _ = _first(answer, room)
    return replace(
        sample,
        prompt=None if sample.prompt is None else kept_prompt,
        answers_K=(kept_answer, *others) if sample.answers_K else (),
    )


def beginning(text: Text, num_tokens: int, tokenizer: Tokenizer) -> Text:
    """A text or chat that begins with the same tokens; what lies far behind them is left out."""
    contents = _contents(text)
    room = _enough("\n".join(contents), num_tokens, len(contents), tokenizer, at_end=False)
    kept, _ = _first(text, room)
    return kept


def ending(text: Text, num_tokens: int, tokenizer: Tokenizer) -> Text:
    """A text or chat that ends with the same tokens; what lies far before them is left out."""
    contents = _contents(text)
    room = _enough("\n".join(contents), num_tokens, len(contents), tokenizer, at_end=True)
    if isinstance(text, str):
        kept_text = _last_characters(text, room)
        begin = tokenizer.bos_token or ""
        # Truncation keeps a begin token that the text itself has.
        return kept_text if not text.startswith(begin) else begin + kept_text.removeprefix(begin)
    kept = []
    for message in reversed(text):
        content = message["content"]
        if isinstance(content, str):
            content, room = _last_characters(content, room), room - len(content)
        kept.append({**message, "content": content})
    return kept[::-1]


def enough_characters(text: str, num_tokens: int, tokenizer: Tokenizer) -> int:
    """How many characters at the beginning of a text surely hold its first tokens."""
    return _enough(text, num_tokens, 1, tokenizer, at_end=False)


def _enough(
    whole: str, num_tokens: int, num_texts: int, tokenizer: Tokenizer, *, at_end: bool
) -> int:
    """How many characters at the beginning or end surely hold so many tokens of the whole."""
    wanted = num_tokens + _UNSETTLED_TOKENS + _BORDER_TOKENS * num_texts
    num_characters = max(_CHARACTERS_A_TOKEN * num_tokens, _LEAST_CHARACTERS)
    while num_characters < len(whole):
        part = whole[-num_characters:] if at_end else whole[:num_characters]
        if len(written_tokens(tokenizer, part)) >= wanted:
            return num_characters
        num_characters *= 2
    return len(whole)


def _contents(text: Text) -> list[str]:
    if isinstance(text, str):
        return [text]
    contents = [message["content"] for message in text]
    return [content for content in contents if isinstance(content, str)]


def _first(text: Text, room: int) -> tuple[Text, int]:
    """The beginning of a text or chat, and what room it leaves."""
    if isinstance(text, str):
        return _first_characters(text, room), room - len(text)
    kept = []
    for message in text:
        content = message["content"]
        if isinstance(content, str):
            content, room = _first_characters(content, room), room - len(content)
        kept.append({**message, "content": content})
    return kept, room


def _first_characters(text: str, room: int) -> str:
    # Behind space at the beginning, which templates trim.
    end = len(text) - len(text.lstrip()) + max(room, _STUB_CHARACTERS)
    # A template takes a message apart at these.
    return text if has_tags(text, end, len(text)) else text[:end]


def _last_characters(text: str, room: int) -> str:
    start = word_border(text, max(0, len(text.rstrip()) - max(room, _STUB_CHARACTERS)))
    return text if has_tags(text, 0, start) else text[start:]
