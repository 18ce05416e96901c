"""What happens to sequences that are too long: one limit for prompts, examples and answers.

Texts are cut behind what truncation keeps, so that a book is not tokenized for its first page.
Tokens of a text's beginning are those of the whole text but for the last few, which depend on what
follows; tokens of its end likewise but for the first few, where it is cut in front of space. How
many characters hold enough of them is found by tokenizing more and more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.chat.borders import Tokenizer, word_border, written_tokens
from rlhf_ray.data.chat.reasoning import has_tags
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.data.json_values import Text
from rlhf_ray.errors import DataError, UnusableRow

OverLength = Literal["auto", "error", "drop", "truncate", "split"]

# Around a cut tokens may be others than in the whole text. A word of as many is rare.
_UNSETTLED_TOKENS = 256
# The same of two texts that follow one another.
_BORDER_TOKENS = 4
# Tried first. More characters a token than most texts have, so that once is mostly enough.
_CHARACTERS_A_TOKEN, _LEAST_CHARACTERS = 8, 4096
# Left of a text that lies behind what is kept: a chat's message may not be empty.
_STUB_CHARACTERS = 64


@dataclass(frozen=True, kw_only=True)
class LengthLimit:
    """The most tokens of one sequence, and what becomes of longer ones.

    Attributes:
        num_tokens: The limit.
        name: The setting that it comes from.
        over_length: As in `DataConfig`.
        longest_token: Characters of the tokenizer's longest token, by which a text of megabytes is
            known to be too long without tokenizing it.
    """

    num_tokens: int
    name: str
    over_length: OverLength
    longest_token: int

    def __post_init__(self) -> None:
        """Check the limit.

        Raises:
            ValueError: No room for a single token.
        """
        if self.num_tokens < 1:
            raise ValueError(f"{self.name} must leave at least 1 token, got {self.num_tokens}")

    @classmethod
    def of(
        cls, config: DataConfig, tokenizer: Tokenizer, num_tokens: int, name: str
    ) -> LengthLimit:
        """What the configuration says of a tokenizer's sequences.

        A token stands for no more characters than its own, the unknown one excepted.
        """
        return cls(
            num_tokens=num_tokens,
            name=name,
            over_length=config.over_length,
            longest_token=max(map(len, tokenizer.get_vocab())),
        )

    @property
    def truncates(self) -> bool:
        """Whether a sequence that is too long is cut."""
        return self.over_length in ("truncate", "split")

    def check_text(self, num_characters: int, where: str) -> None:
        """Refuse a text that cannot fit, unless it is to be truncated.

        Raises:
            UnusableRow: It is too long and to be dropped.
            DataError: It is too long and the policy is `error`.
        """
        if num_characters > self.num_tokens * self.longest_token and not self.truncates:
            self._refuse(f"{num_characters} characters", where)

    def fits(self, num_tokens: int, where: str) -> bool:
        """Whether a sequence stays as it is; otherwise it is to be truncated.

        Raises:
            UnusableRow: It is too long and to be dropped.
            DataError: It is too long and the policy is `error`.
        """
        if num_tokens > self.num_tokens and not self.truncates:
            self._refuse(f"{num_tokens} tokens", where)
        return num_tokens <= self.num_tokens

    def nothing_left(self, where: str) -> UnusableRow:
        """A sequence of which truncation would leave nothing that counts."""
        return UnusableRow(where, "too long", f"nothing left within {self.num_tokens} tokens")

    def _refuse(self, length: str, where: str) -> None:
        detail = f"{length}, but {self.name} allows {self.num_tokens} tokens"
        if self.over_length != "drop":
            raise DataError(f"{where}: {detail}; set over_length to drop or truncate")
        raise UnusableRow(where, "too long", detail)


def keep_last(token_ids_T: list[int], num_tokens: int, tokenizer: Tokenizer) -> list[int]:
    """A prompt's last tokens, behind its begin token if it has one: models lean on it.

    The last ones hold the question, and a template's opening of an answer.
    """
    if len(token_ids_T) <= num_tokens:
        return token_ids_T
    begins = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
    if num_tokens > 1 and token_ids_T[0] in begins:
        return [token_ids_T[0], *token_ids_T[-(num_tokens - 1) :]]
    return token_ids_T[-num_tokens:]


def beginning_of_sample(sample: Sample, num_tokens: int, tokenizer: Tokenizer) -> Sample:
    """The sample with the first tokens of its prompt and best answer together; see `beginning`."""
    prompt: Text = "" if sample.prompt is None else sample.prompt
    answer, *others = sample.answers_K or ("",)
    contents = [*_contents(prompt), *_contents(answer)]
    room = _enough(contents, num_tokens, tokenizer, at_end=False)
    kept_prompt, room = _cut(prompt, room, _first_characters)
    kept_answer, _ = _cut(answer, room, _first_characters)
    return replace(
        sample,
        prompt=None if sample.prompt is None else kept_prompt,
        answers_K=(kept_answer, *others) if sample.answers_K else (),
    )


def beginning(text: Text, num_tokens: int, tokenizer: Tokenizer) -> Text:
    """A text or chat that begins with the same tokens; what lies far behind them is left out."""
    room = _enough(_contents(text), num_tokens, tokenizer, at_end=False)
    return _cut(text, room, _first_characters)[0]


def ending(text: Text, num_tokens: int, tokenizer: Tokenizer) -> Text:
    """A text or chat that ends with the same tokens; what lies far before them is left out."""
    room = _enough(_contents(text), num_tokens, tokenizer, at_end=True)
    if not isinstance(text, str):
        return _cut(text[::-1], room, _last_characters)[0][::-1]
    kept = _last_characters(text, room)
    begin = tokenizer.bos_token or ""
    # Truncation keeps a begin token that the text itself has.
    return kept if not text.startswith(begin) else begin + kept.removeprefix(begin)


def enough_characters(text: str, num_tokens: int, tokenizer: Tokenizer) -> int:
    """How many characters at the beginning of a text surely hold its first tokens."""
    return _enough([text], num_tokens, tokenizer, at_end=False)


def _enough(contents: Sequence[str], num_tokens: int, tokenizer: Tokenizer, *, at_end: bool) -> int:
    """How many characters at the beginning or end surely hold so many tokens of all together."""
    whole = "\n".join(contents)
    wanted = num_tokens + _UNSETTLED_TOKENS + _BORDER_TOKENS * len(contents)
    num_characters = max(_CHARACTERS_A_TOKEN * num_tokens, _LEAST_CHARACTERS)
    while num_characters < len(whole):
        part = whole[-num_characters:] if at_end else whole[:num_characters]
        if len(written_tokens(tokenizer, part)) >= wanted:
            return num_characters
        num_characters *= 2
    return len(whole)


def _contents(text: Text) -> list[str]:
    return [text] if isinstance(text, str) else [message["content"] for message in text]


def _cut(text: Text, room: int, cut: Callable[[str, int], str]) -> tuple[Text, int]:
    """A text, or a chat message by message, within so many characters; and what room it leaves."""
    if isinstance(text, str):
        return cut(text, room), room - len(text)
    kept = []
    for message in text:
        content = message["content"]
        kept.append({**message, "content": cut(content, room)})
        room -= len(content)
    return kept, room


def _first_characters(text: str, room: int) -> str:
    # Behind space at the beginning, which templates trim.
    end = len(text) - len(text.lstrip()) + max(room, _STUB_CHARACTERS)
    # A template takes a message apart at these.
    return text if has_tags(text, end, len(text)) else text[:end]


def _last_characters(text: str, room: int) -> str:
    start = word_border(text, max(0, len(text.rstrip()) - max(room, _STUB_CHARACTERS)))
    return text if has_tags(text, 0, start) else text[start:]
