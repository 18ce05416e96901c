"""What ends an answer: the chat template's end of a turn, found by rendering, and all end tokens.

A template's own text says nothing certain about it; what stands behind a rendered answer does.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rlhf_ray.data.chat.borders import Tokenizer
from rlhf_ray.data.chat.template import ASKED, PLACEHOLDER, probe
from rlhf_ray.errors import DataError

logger = logging.getLogger(__name__)

# What is meant as a token of its own: `<|im_end|>`, `<end_of_turn>`, `</s>`, DeepSeek's wide bars.
_MARK = re.compile(r"<\|[^|<>]+\|>|<｜[^｜<>]+｜>|</s>|<\w*(?:end|eo[tsm])\w*>|<\w+\|>")


@dataclass(frozen=True, kw_only=True)
class TurnEnd:
    r"""How a chat template ends an assistant's turn.

    Example: ChatML's is `TurnEnd(text="<|im_end|>", rest="\n", token_id=7, broken="")`.

    Attributes:
        text: What follows an answer, up to and with the end token; all of it where no single token
            ends a turn, as in templates of plain text; the tokenizer's end token where nothing
            follows.
        rest: What the template writes behind that. It belongs to no answer.
        token_id: The end token; None where there is none.
        broken: A mark such as `<|im_end|>` that the template ends turns with and the vocabulary
            lacks: it would be spelt by several ordinary tokens. Empty where there is none.
        is_written: Whether the template writes it; else it is put behind an answer all the same.
    """

    text: str
    rest: str
    token_id: int | None
    broken: str
    is_written: bool = True

    def of(self, answer: str) -> str:
        """An answer as the template writes it, up to its end."""
        if not self.is_written:
            return answer + self.text
        return answer.removesuffix(self.rest) if answer.endswith(self.text + self.rest) else answer


@dataclass(frozen=True, kw_only=True)
class EndTokens:
    """Tokens that end a response.

    Attributes:
        ids: In rising order, each once.
        words: The same for the log, and where each comes from.
    """

    ids: tuple[int, ...]
    words: str


def turn_end(tokenizer: Tokenizer) -> TurnEnd | None:
    """How the tokenizer's template ends an answer; None without a template for a plain answer."""
    if not tokenizer.chat_template:
        return None
    return _turn_end(tokenizer, str(tokenizer.chat_template), str(tokenizer.eos_token))


def checked_turn_end(tokenizer: Tokenizer) -> TurnEnd | None:
    """The same, where chats are rendered.

    Raises:
        DataError: The template's end is a mark that the vocabulary lacks.
    """
    end = turn_end(tokenizer)
    if end is not None and end.broken:
        raise DataError(
            f"the chat template ends a turn with {end.broken!r}, which is no token of "
            f"{tokenizer.name_or_path!r} but would be spelt by several: nothing could end an "
            "answer; add it to the tokenizer, or set another chat_template"
        )
    return end


def end_tokens(
    tokenizer: Tokenizer, generation_ids: Sequence[int] = (), stop_token_ids: Sequence[int] = ()
) -> EndTokens:
    """All tokens that end a response: the tokenizer's, the model's and the chat template's.

    Of `stop_token_ids`, which the configuration names, special tokens end a turn; others (a full
    stop, say) are part of what is said.
    """
    sources: dict[int, list[str]] = {}
    if tokenizer.eos_token_id is not None:
        sources.setdefault(int(tokenizer.eos_token_id), []).append("tokenizer")
    for token_id in generation_ids:
        sources.setdefault(int(token_id), []).append("generation_config")
    for token_id in stop_token_ids:
        added = tokenizer.added_tokens_decoder.get(token_id)
        if token_id in tokenizer.all_special_ids or (added is not None and added.special):
            sources.setdefault(token_id, []).append("rollout.stop_token_ids")
    end = turn_end(tokenizer)
    if end is not None and end.token_id is not None:
        sources.setdefault(end.token_id, []).append("chat template")
    words = ", ".join(
        f"{tokenizer.convert_ids_to_tokens(token_id)!r} ({token_id}: {' and '.join(names)})"
        for token_id, names in sorted(sources.items())
    )
    if end is not None and end.token_id is None:
        words += f"; the chat template's own end {(end.broken or end.text)!r} is no single token"
    return EndTokens(ids=tuple(sorted(sources)), words=words or "no token at all")


def known_ends(tokenizer: Tokenizer) -> set[int]:
    """The tokenizer's end token and its template's, as far as there are any."""
    end = turn_end(tokenizer)
    return {tokenizer.eos_token_id, None if end is None else end.token_id} - {None}


def with_end(
    tokenizer: Tokenizer, token_ids_T: list[int], prompt_ids_T: Collection[int] = ()
) -> list[int]:
    """The same tokens, ended by the end token; space behind one that is there is left out.

    Behind a prompt that was rendered before, turns of which end by the template's token, that is
    the end as well.

    Raises:
        DataError: The tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(f"the tokenizer {tokenizer.name_or_path!r} has no end token")
    ends, length = known_ends(tokenizer), len(token_ids_T)
    while length and not tokenizer.decode(token_ids_T[length - 1 : length]).strip():
        length -= 1
    if length and token_ids_T[length - 1] in ends:
        return token_ids_T[:length]
    [of_turns] = ends - {tokenizer.eos_token_id} or {tokenizer.eos_token_id}
    has_turns = of_turns in prompt_ids_T
    return [*token_ids_T, of_turns if has_turns else tokenizer.eos_token_id]


@functools.lru_cache(maxsize=16)
def _turn_end(tokenizer: Tokenizer, chat_template: str, eos_token: str) -> TurnEnd | None:
    """The key holds all that a caller may change of a tokenizer."""
    # A refusal is reported once a chat is to be rendered.
    rendered = probe(tokenizer, [ASKED, {"role": "assistant", "content": PLACEHOLDER}]) or ""
    _, placeholder, behind = rendered.rpartition(PLACEHOLDER)
    if not placeholder:
        return None
    spelt = {mark for mark in _MARK.findall(rendered) if only_token(tokenizer, mark) is None}
    if spelt:
        logger.warning(
            "the chat template writes %s, which the vocabulary of %r lacks: each is spelt by "
            "several tokens; add them to the tokenizer, or set another chat_template",
            ", ".join(sorted(spelt)),
            tokenizer.name_or_path,
        )
    return _parted(tokenizer, behind)


def _parted(tokenizer: Tokenizer, behind: str) -> TurnEnd:
    """What stands behind an answer, parted at the first end token that only space precedes."""
    if not behind and tokenizer.eos_token_id is not None:
        eos, eos_id = str(tokenizer.eos_token), int(tokenizer.eos_token_id)
        return TurnEnd(text=eos, rest="", token_id=eos_id, broken="", is_written=False)
    begin = len(behind) - len(behind.lstrip())
    mark = _MARK.match(behind, begin)
    words = sorted({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}, key=len)
    whole = [word for word in words if word and behind.startswith(word, begin)][-1:]
    for word in [*whole, *([mark.group()] if mark else [])]:
        if (token_id := only_token(tokenizer, word)) is not None:
            border = begin + len(word)
            return TurnEnd(text=behind[:border], rest=behind[border:], token_id=token_id, broken="")
    broken = mark.group() if mark else ""
    if not broken:
        logger.warning(
            "the chat template ends a turn with %r, which is no token that ends a response: a "
            "policy does not learn from it where to stop; put {{ eos_token }} there",
            behind,
        )
    return TurnEnd(text=behind, rest="", token_id=None, broken=broken)


def only_token(tokenizer: Tokenizer, word: str) -> int | None:
    """The token that a word is, wherever it stands; None where it is spelt by several."""
    token_id = tokenizer.get_vocab().get(word)
    if token_id is None:
        return None
    behind_text: list[int] = tokenizer(f"a{word}", add_special_tokens=False)["input_ids"]
    return token_id if behind_text[-1:] == [token_id] else None
