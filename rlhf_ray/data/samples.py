"""What a row says, whatever its format: a prompt and answers to it, before any tokenization."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf_ray.data.errors import RowError, UnusableRow
from rlhf_ray.data.messages import Messages, Text


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt with its answers.

    Example: `Sample(sample_id="pairs:3", where="pairs.jsonl:4", prompt="2+2?",
    answers_K=("4", "5"))`.

    Attributes:
        sample_id: The row's id; with a number behind it where the row holds several samples.
        where: File and line, for errors.
        prompt: What every answer follows. None where `answers_K` is one whole text or chat, all of
            whose assistant's turns count.
        answers_K: The best first. Empty where the row has a prompt alone.
        levels_K: How good each answer is, the higher the better; equal ones are ties. Empty where
            their order is all that is known.
        truncated_K: Whether each answer was cut off before its end; None where the row does not say
            so, which it does of answers that a policy sampled. Empty where it says so of none.
        margin: By how much the first of a pair is better, where the data says so.
        desirable: Of a single answer, whether it was found good; None where nobody judged it.
        columns: The row's other columns, for reward functions.
    """

    sample_id: str
    where: str
    prompt: Text | None
    answers_K: tuple[Text, ...] = ()
    levels_K: tuple[float, ...] = ()
    truncated_K: tuple[bool | None, ...] = ()
    margin: float | None = None
    desirable: bool | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_characters(self) -> int:
        """Of prompt and longest answer."""
        longest = max((num_characters(answer) for answer in self.answers_K), default=0)
        return num_characters(self.prompt or "") + longest


def num_characters(text: Text) -> int:
    """Of a text, or of a chat's messages."""
    if isinstance(text, str):
        return len(text)
    return sum(len(message["content"]) for message in text)


def ranked(sample: Sample) -> Sample:
    """The same sample, if its answers are a ranking.

    Raises:
        RowError: Nothing to rank.
        UnusableRow: There is one answer alone, two are equal, equally good, or one is empty, as the
            prompt may be.
    """
    if sample.prompt is None or not sample.answers_K:
        raise RowError(sample.where, "too few answers", "wanted at least 2, got none")
    _asked(sample.where, sample.prompt)
    if len(sample.answers_K) == 1:
        detail = "no other answer to its prompt; rows of one prompt must follow one another"
        raise UnusableRow(sample.where, "a single answer", detail)
    if any(_is_empty(answer) for answer in sample.answers_K):
        raise UnusableRow(sample.where, "empty answer")
    if any(one == other for one, other in itertools.combinations(sample.answers_K, 2)):
        raise UnusableRow(sample.where, "equal answers")
    if any(one <= other for one, other in itertools.pairwise(sample.levels_K)):
        order = "tie" if len(set(sample.levels_K)) < len(sample.levels_K) else "worse scored higher"
        raise UnusableRow(sample.where, order)
    return sample


def pairs(sample: Sample) -> Iterator[Sample]:
    """All pairs of a ranking, as rankings of two; what is wrong with one is its own affair."""
    if len(sample.answers_K) <= 2:
        yield sample
        return
    indices = itertools.combinations(range(len(sample.answers_K)), 2)
    for number, (better, worse) in enumerate(indices):
        levels, truncated = sample.levels_K, sample.truncated_K
        yield replace(
            sample,
            sample_id=f"{sample.sample_id}/{number}",
            answers_K=(sample.answers_K[better], sample.answers_K[worse]),
            levels_K=(levels[better], levels[worse]) if levels else (),
            truncated_K=(truncated[better], truncated[worse]) if truncated else (),
            margin=None,
        )


def of_assistant_alone(sample: Sample) -> Sample:
    """The same sample, if nobody but the assistant speaks in its answers.

    Raises:
        RowError: Somebody does, and every token of an answer would be trained.
    """
    for answer in sample.answers_K:
        others = [] if isinstance(answer, str) else [t["role"] for t in answer]
        if other := next((role for role in others if role != "assistant"), ""):
            detail = (
                f"one has a turn of the {other}'s, whose tokens would be trained as the "
                "assistant's: let the chats part at their last turn, or leave such rows out by "
                "data.on_bad_row: skip"
            )
            raise RowError(sample.where, "answers that others speak in", detail)
    return sample


def labelled(sample: Sample) -> Iterator[Sample]:
    """Answers with a label: their own, or the best of a ranking as good and the others as bad.

    Raises:
        RowError: Nobody judged its answers.
        UnusableRow: Their order says nothing.
    """
    if sample.desirable is not None:
        yield sample
        return
    sample = ranked(sample)
    for index, answer in enumerate(sample.answers_K):
        yield replace(
            sample,
            sample_id=f"{sample.sample_id}/{index}",
            answers_K=(answer,),
            levels_K=(),
            truncated_K=sample.truncated_K[index : index + 1],
            desirable=index == 0,
        )


def best_answer(sample: Sample) -> tuple[Text, Text]:
    """Prompt and best answer; of a whole chat, what the assistant says last and all before it.

    Raises:
        RowError: There is no answer.
        UnusableRow: It is empty, or the prompt is.
    """
    prompt, answer = sample.prompt, sample.answers_K[0] if sample.answers_K else ""
    if prompt is None:
        prompt, answer = ("", answer) if isinstance(answer, str) else _parted(answer)
        if not prompt or not answer:
            raise RowError(sample.where, "no prompt", "wanted an answer and what it follows")
    if _is_empty(answer):
        raise UnusableRow(sample.where, "empty answer")
    return _asked(sample.where, prompt), answer


def prompt_of(sample: Sample) -> Text:
    """What a policy shall answer: of a whole chat, all before what the assistant says last.

    Raises:
        RowError: The chat has nothing but an answer.
        UnusableRow: It is empty.
    """
    prompt = sample.prompt
    if prompt is None:
        [whole] = sample.answers_K
        prompt = whole if isinstance(whole, str) else _parted(whole)[0]
        if not prompt:
            raise RowError(sample.where, "no prompt", "the chat has nothing but an answer")
    return _asked(sample.where, prompt)


def reference_answer(sample: Sample) -> str:
    """What the assistant says at the end of a whole chat; empty where it has not the last word.

    A tool call is written as JSON.
    """
    whole = sample.answers_K[0] if sample.prompt is None else ""
    if isinstance(whole, str) or whole[-1]["role"] != "assistant":
        return ""
    said = str(whole[-1]["content"])
    calls = [call["function"] for call in whole[-1].get("tool_calls", ())]
    return said or json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False)


def is_trained(message: Mapping[str, Any]) -> bool:
    """Whether a turn of the assistant is to be trained."""
    return bool(message.get("weight", 1))


def is_silent(message: Mapping[str, Any]) -> bool:
    """Whether a message says nothing and calls nothing."""
    return not message["content"].strip() and "tool_calls" not in message


def _asked(where: str, prompt: Text) -> Text:
    """The same prompt, if it asks something.

    Raises:
        UnusableRow: It does not.
    """
    last = as_chat(prompt, "user")[-1]
    if last["role"] != "assistant" and is_silent(last):
        raise UnusableRow(where, "empty prompt")
    return prompt


def _parted(chat: Messages) -> tuple[Messages, Messages]:
    """A chat, and the assistant's turns at its end."""
    num_last = sum(
        1 for _ in itertools.takewhile(lambda turn: turn["role"] == "assistant", reversed(chat))
    )
    return chat[: len(chat) - num_last], chat[len(chat) - num_last :]


def as_chat(text: Text, role: str) -> Messages:
    """A chat; a string becomes one message of `role`."""
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _is_empty(answer: Text) -> bool:
    if isinstance(answer, str):
        return not answer.strip()
    return any(turn["role"] == "assistant" and is_silent(turn) for turn in answer)
