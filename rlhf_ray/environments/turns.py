"""The tokens between a policy's end token and its next turn, as its chat template writes them.

They are the difference of two renderings of a short fixed chat: with the environment's messages
behind an answer, and without. So they do not depend on the rollout, whose own tokens stay as they
were sampled. That this is what the template would write of the whole chat is checked once, at the
start: a template that renders earlier turns anew (Qwen3 drops their reasoning once a user speaks)
shows a policy another past than it had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.data.chat.borders import Tokenizer, tokens_behind, written_tokens
from rlhf_ray.data.chat.reasoning import has_tags
from rlhf_ray.data.chat.template import ASKED, PLACEHOLDER, ChatTemplate, writes_calls
from rlhf_ray.data.chat.turns import Rendering, renderings
from rlhf_ray.data.examples.lengths import enough_characters
from rlhf_ray.environments.protocol import Message, Role
from rlhf_ray.errors import ConfigError, RowError, short

_WHERE = "the environment's messages"
_THOUGHT = "<think>\nLet us see.\n</think>\n\n"


@dataclass(frozen=True, kw_only=True)
class TurnTemplate:
    """How a tokenizer's chat template goes on behind an answer.

    Attributes:
        tokenizer: Whose template it is.
        end_ids: Tokens that end a response.
        options: What the template gets beside messages: `tools`, `enable_thinking`, ...
    """

    tokenizer: Tokenizer
    end_ids: frozenset[int]
    options: Mapping[str, Any] = field(default_factory=dict)

    def check(self, roles: Sequence[Role] = ("tool", "user")) -> None:
        """Render three turns whole, and compare with what this would append.

        Raises:
            ConfigError: The template has no messages of a role, does not end a turn by a token that
                ends a response, or renders earlier turns anew, and shows where.
        """
        for role in roles:
            try:
                self._check(role)
            except RowError as error:
                raise ConfigError(
                    f"environment: the chat template cannot go on behind an answer by messages of "
                    f"the role {role!r}: {error.reason}: {error.detail}"
                ) from error

    def tokens(self, last_id: int, messages: Sequence[Message]) -> list[int]:
        """What stands between a turn that ended with the token `last_id` and the next one.

        Where no end token ended the turn (a stop string did) the template's comes first.

        Raises:
            RowError: The template refuses these messages.
        """
        end, text = self._behind_end(messages)
        end_id = self._id_of(end)
        front = [] if last_id in self.end_ids else [end_id]
        return front + tokens_behind(self.tokenizer, [end_id], end, text)

    def _check(self, role: Role) -> None:
        fault, is_checked = None, False
        for chat in self._chats(role):
            turns = [index for index, message in enumerate(chat) if message["role"] == "assistant"]
            try:
                first, *others = renderings(self._template(), chat, turns)
            except RowError as error:
                fault = fault or error  # an answer of the other kind is what it takes
                continue
            if _adds_reasoning(chat, first):
                continue  # no policy answers like this
            if others:
                raise ConfigError(_anew(first.text, others[0].text, role))
            places = zip(first.spans, first.spans[1:], turns, turns[1:], strict=False)
            for (_, end), (begin, _), turn, next_turn in places:
                ended, text = self._behind_end(chat[turn + 1 : next_turn])
                written = first.text[end:begin]
                if not first.text[:end].endswith(ended) or written != text:
                    raise ConfigError(
                        f"environment: the chat template writes {short(written)} behind turn "
                        f"{turn} of a chat and {short(text)} behind an answer alone"
                    )
            is_checked = True
        if not is_checked:
            raise fault or ConfigError(
                "environment: the chat template puts reasoning into answers that have none, and "
                "has no place for one that has"
            )

    def _chats(self, role: Role) -> Iterator[list[dict[str, Any]]]:
        """Three turns with messages of the role between, with reasoning and without."""
        for thought in (_THOUGHT, ""):
            chat: list[dict[str, Any]] = [dict(ASKED)]
            for number in ("one", "two"):
                chat += [self._answer(role, number, number, thought), _told(role, number)]
            yield [*chat, {"role": "assistant", "content": thought + "Three."}]

    def _answer(self, role: Role, name: str, said: str, thought: str = "") -> dict[str, Any]:
        """A turn that messages of a role can follow: one that calls a tool, where there are."""
        if role == "tool" and writes_calls(self.tokenizer):
            function = {"name": name, "arguments": {"said": said}}
            call = {"id": "call00000", "type": "function", "function": function}
            return {"role": "assistant", "content": thought, "tool_calls": [call]}
        return {"role": "assistant", "content": thought + said}

    def _behind_end(self, messages: Sequence[Message]) -> tuple[str, str]:
        """The text of the token that ends an answer, and what is written behind it.

        Raises:
            RowError: The template does not end a turn by such a token, or refuses the messages.
        """
        is_tool = messages[0]["role"] == "tool"
        name = messages[0].get("name", "tool")
        held = [dict(ASKED), self._answer("tool" if is_tool else "user", name, PLACEHOLDER)]
        template = self._template()
        alone = template.render(held).partition(PLACEHOLDER)[2]
        followed = template.render([*held, *map(dict, messages)], add_generation_prompt=True)
        followed = followed.partition(PLACEHOLDER)[2]
        begin, end = self._end_in(alone)
        if followed.startswith(alone[: begin + len(end)]):
            return end, followed[begin + len(end) :]
        # gpt-oss ends its last answer by <|return|>, and writes <|end|> there once it goes on.
        marks = self.tokenizer.get_added_vocab()
        other = next((mark for mark in marks if followed.startswith(mark, begin)), None)
        if other is None or followed[:begin] != alone[:begin]:
            detail = f"{short(followed)} behind an answer that ends with {short(alone)}"
            raise RowError(_WHERE, "the chat template renders an answer differently", detail)
        return end, followed[begin + len(other) :]

    def _end_in(self, alone: str) -> tuple[int, str]:
        """Where the first end token stands in what follows an answer, and its text."""
        places = {alone.find(end): end for end in self._ends() if end in alone}
        if not places:
            ends = ", ".join(map(repr, self._ends())) or "none"
            detail = f"{short(alone)} stands behind an answer; tokens that end a response: {ends}"
            raise RowError(_WHERE, "the chat template ends a turn by no token", detail)
        begin = min(places)
        return begin, places[begin]

    def _ends(self) -> list[str]:
        return [str(self.tokenizer.convert_ids_to_tokens(i)) for i in sorted(self.end_ids)]

    def _id_of(self, end: str) -> int:
        return next(i for i in self.end_ids if self.tokenizer.convert_ids_to_tokens(i) == end)

    def _template(self) -> ChatTemplate:
        return ChatTemplate(tokenizer=self.tokenizer, where=_WHERE, options=self.options)


def shortened_message(tokenizer: Tokenizer, message: Message, max_tokens: int) -> Message:
    """A message of so many tokens at most; of a longer one the beginning, and a line that says so.

    The line comes on top.
    """
    content = message["content"]
    beginning = content[: enough_characters(content, max_tokens, tokenizer)]
    ids_T = written_tokens(tokenizer, beginning)
    if len(ids_T) <= max_tokens:
        return message
    kept = str(tokenizer.decode(ids_T[:max_tokens], skip_special_tokens=False)).rstrip("\ufffd")
    cut = f"{kept}\n[cut after {max_tokens} tokens: {len(content) - len(kept)} characters more]"
    return {**message, "content": cut}


def _adds_reasoning(chat: Sequence[Mapping[str, Any]], written: Rendering) -> bool:
    """Whether a turn is written with reasoning, and the chat has none."""
    said = "".join(message["content"] for message in chat)
    is_added = any(has_tags(written.text, begin, end) for begin, end in written.spans)
    return is_added and not has_tags(said, 0, len(said))


def _told(role: Role, number: str) -> dict[str, Any]:
    if role == "user":
        return {"role": "user", "content": f"And {number}?"}
    return {"role": "tool", "name": number, "tool_call_id": "call00000", "content": f"is {number}"}


def _anew(first: str, then: str, role: Role) -> str:
    """Where a later turn's context is not what an earlier turn ended with."""
    at = next((i for i, (a, b) in enumerate(zip(first, then, strict=False)) if a != b), len(then))
    was, became = (short(text[max(0, at - 10) :]) for text in (first, then))
    return (
        f"environment: the chat template renders an answer anew once messages of the role {role!r} "
        f"follow it: {was} becomes {became}. A policy would be shown another past than it had; "
        "set a chat_template that keeps answers as they are, or environment.template: append, "
        "which keeps the tokens that were sampled"
    )
