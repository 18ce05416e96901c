"""What a row says, whatever its format: a prompt and answers to it, before any tokenization."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from rlhf_ray.data.json_values import Messages, Text
from rlhf_ray.data.messages import as_chat
from rlhf_ray.data.row import Row
from rlhf_ray.errors import RowError, UnusableRow

_MOST_ANSWERS = 256  # of one prompt: 32,640 pairs


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

    @classmethod
    def of(cls, row: Row, prompt: Text | None, *answers_K: Text, **more: Any) -> Self:
        """What a row says, given its prompt and answers."""
        return cls(
            sample_id=row.row_id, where=row.where, prompt=prompt, answers_K=answers_K, **more
        )

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


def comparable(sample: Sample) -> Iterator[Sample | UnusableRow]:
    """The sample with those of its answers that can be compared, and what is wrong with the others.

    Of answers that say the same the best stays.

    Raises:
        RowError: Nothing to rank, or too much.
        UnusableRow: There are not two answers that differ and are not empty, all are equally good,
            the worse of two scored higher, or the prompt is empty.
    """
    where = sample.where
    if sample.prompt is None or not sample.answers_K:
        raise RowError(where, "too few answers", "wanted at least 2, got none")
    _asked(where, sample.prompt)
    if len(sample.answers_K) == 1:
        detail = "no other answer to its prompt; rows of one prompt must follow one another"
        raise UnusableRow(where, "a single answer", detail)
    if len(sample.answers_K) > _MOST_ANSWERS:
        detail = (
            f"at most {_MOST_ANSWERS} are compared with one another, got {len(sample.answers_K)}"
        )
        raise RowError(where, "too many answers", detail)
    kept: list[int] = []
    faults: list[UnusableRow] = []
    for index, answer in enumerate(sample.answers_K):
        if _is_empty(answer):
            faults.append(UnusableRow(where, "empty answer"))
        elif any(answer == sample.answers_K[other] for other in kept):
            faults.append(UnusableRow(where, "equal answers"))
        else:
            kept.append(index)
    if len(kept) < 2:
        raise faults[0]
    yield from faults
    sample = with_answers(sample, kept)
    if sample.levels_K and len(set(sample.levels_K)) == 1:
        raise UnusableRow(where, "tie")
    if any(one < other for one, other in itertools.pairwise(sample.levels_K)):
        raise UnusableRow(where, "worse scored higher")
    yield sample


def with_answers(sample: Sample, indices: Sequence[int]) -> Sample:
    """The sample with some of its answers alone."""
    levels, truncated = sample.levels_K, sample.truncated_K
    return replace(
        sample,
        answers_K=tuple(sample.answers_K[index] for index in indices),
        levels_K=tuple(levels[index] for index in indices) if levels else (),
        truncated_K=tuple(truncated[index] for index in indices) if truncated else (),
    )


def tiers_of(sample: Sample) -> tuple[int, ...]:
    """The tier of each answer, 0 for the best; answers of one tier are ties."""
    if not sample.levels_K:
        return tuple(range(len(sample.answers_K)))
    places = {level: tier for tier, level in enumerate(sorted(set(sample.levels_K), reverse=True))}
    return tuple(places[level] for level in sample.levels_K)


def ties(sample: Sample) -> Iterator[UnusableRow]:
    """One for each pair of its answers that are equally good."""
    for one, other in itertools.combinations(tiers_of(sample), 2):
        if one == other:
            yield UnusableRow(sample.where, "tie")


def pairs(sample: Sample) -> Iterator[Sample | UnusableRow]:
    """All pairs of a ranking, as rankings of two; a tie in the place of one that is none."""
    tiers_K = tiers_of(sample)
    if len(tiers_K) == 2:
        yield sample
        return
    for number, pair in enumerate(itertools.combinations(range(len(tiers_K)), 2)):
        if tiers_K[pair[0]] == tiers_K[pair[1]]:
            yield UnusableRow(sample.where, "tie")
        else:
            id_ = f"{sample.sample_id}/{number}"
            yield replace(with_answers(sample, pair), sample_id=id_, margin=None)


def wholly_trained(sample: Sample) -> Sample:
    """The same sample, if every turn of its answers is the assistant's and to be trained.

    Raises:
        RowError: One is not, and every token of an answer would be trained.
        UnusableRow: None of an answer's turns is to be trained.
    """
    advice = "or leave such rows out by data.on_bad_row: skip"
    for answer in sample.answers_K:
        turns = [] if isinstance(answer, str) else answer
        others = (turn["role"] for turn in turns if turn["role"] != "assistant")
        if other := next(others, ""):
            detail = (
                f"one has a turn of the {other}'s, whose tokens would be trained as the "
                f"assistant's: let the chats part at their last turn, {advice}"
            )
            raise RowError(sample.where, "answers that others speak in", detail)
        trained = [is_trained(turn) for turn in turns]
        if turns and not any(trained):
            raise UnusableRow(sample.where, "no turn of the assistant is to be trained")
        if not all(trained):
            detail = f"of an answer all tokens are trained: take the weight away, {advice}"
            raise RowError(sample.where, "an answer with a turn of weight 0", detail)
    return sample


def labelled(sample: Sample) -> Iterator[Sample | UnusableRow]:
    """Answers with a label: their own, or the best of a ranking as good and the others as bad.

    Of answers that tie for the best place all are good.

    Raises:
        RowError: Nobody judged its answers.
        UnusableRow: Their order says nothing.
    """
    if sample.desirable is not None:
        yield sample
        return
    for ranking in comparable(sample):
        if isinstance(ranking, RowError):
            yield ranking
            continue
        for index, tier in enumerate(tiers_of(ranking)):
            yield replace(
                with_answers(ranking, [index]),
                sample_id=f"{ranking.sample_id}/{index}",
                levels_K=(),
                desirable=tier == 0,
            )


def best_answer(sample: Sample) -> tuple[Text, Text]:
    """Prompt and best answer; of a whole chat, what the assistant says last and all before it.

    Raises:
        RowError: There is no answer.
        UnusableRow: It is empty, or the prompt is.
    """
    if not sample.answers_K:
        raise RowError(sample.where, "no answer", "the row has a prompt alone")
    prompt, answer = sample.prompt, sample.answers_K[0]
    if prompt is None:
        prompt, answer = ("", answer) if isinstance(answer, str) else _parted(answer)
        if not prompt or not answer:
            detail = "wanted a chat that ends with the assistant's turn, and what that follows"
            raise RowError(sample.where, "no prompt", detail)
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
    if isinstance(whole, str) or whole[-1]["role"] != "assistant" or is_silent(whole[-1]):
        return ""
    content = str(whole[-1]["content"])
    calls = [call["function"] for call in whole[-1].get("tool_calls", ())]
    return content or json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False)


def is_trained(message: Mapping[str, Any]) -> bool:
    """Whether a turn of the assistant is to be trained."""
    return bool(message.get("weight", 1))


def is_silent(message: Mapping[str, Any]) -> bool:
    """Whether a message says nothing and calls nothing."""
    return not message["content"].strip() and "tool_calls" not in message


def asks_nothing(message: Mapping[str, Any]) -> bool:
    """Whether a message that an answer follows is an empty one, which none but a tool may give."""
    return message["role"] not in ("assistant", "tool") and is_silent(message)


def _asked(where: str, prompt: Text) -> Text:
    """The same prompt, if it asks something."""
    if asks_nothing(as_chat(prompt, "user")[-1]):
        raise UnusableRow(where, "empty prompt")
    return prompt


def _parted(chat: Messages) -> tuple[Messages, Messages]:
    """A chat, and the assistant's turns at its end."""
    num_last = sum(
        1 for _ in itertools.takewhile(lambda turn: turn["role"] == "assistant", reversed(chat))
    )
    return chat[: len(chat) - num_last], chat[len(chat) - num_last :]


def _is_empty(answer: Text) -> bool:
    if isinstance(answer, str):
        return not answer.strip()
    return any(turn["role"] == "assistant" and is_silent(turn) for turn in answer)
