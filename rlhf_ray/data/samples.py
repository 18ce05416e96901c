"""What a row says, whatever its format: a prompt and answers to it, before any tokenization."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf_ray.data.errors import RowError, UnusableRow
from rlhf_ray.data.fields import Messages, Text


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
        UnusableRow: There is one answer alone, two are equal, equally good, or one is empty.
    """
    if sample.prompt is None or not sample.answers_K:
        raise RowError(sample.where, "too few answers", "wanted at least 2, got none")
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
    """Prompt and best answer; of a whole chat, its last turn and all before it.

    Raises:
        RowError: There is no answer.
        UnusableRow: It is empty.
    """
    prompt, answer = sample.prompt, sample.answers_K[0] if sample.answers_K else ""
    if prompt is None:
        if isinstance(answer, str) or answer[-1]["role"] != "assistant" or len(answer) < 2:
            raise RowError(sample.where, "no prompt", "wanted an answer and what it follows")
        prompt, answer = answer[:-1], answer[-1:]
    if _is_empty(answer):
        raise UnusableRow(sample.where, "empty answer")
    return prompt, answer


def prompt_of(sample: Sample) -> Text:
    """What a policy shall answer: of a whole chat, all before the assistant's last turn.

    Raises:
        RowError: The chat has nothing but an answer.
    """
    if sample.prompt is not None:
        return sample.prompt
    [whole] = sample.answers_K
    if isinstance(whole, str):
        return whole
    prompt = whole[:-1] if whole[-1]["role"] == "assistant" else whole
    if not prompt:
        raise RowError(sample.where, "no prompt", "the chat has nothing but an answer")
    return prompt


def as_chat(text: Text, role: str) -> Messages:
    """A chat; a string becomes one message of `role`."""
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _is_empty(answer: Text) -> bool:
    last = answer if isinstance(answer, str) else answer[-1]["content"]
    return not last.strip()
