"""From rows to rankings, to labelled answers, and to single answers that shall only be scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from rlhf_ray.data.chat.answers import tokenize_answers
from rlhf_ray.data.examples.lengths import beginning, ending, keep_last
from rlhf_ray.data.examples.tokenization import Kept, Tokenization
from rlhf_ray.data.formats.row_format import Kind
from rlhf_ray.data.formats.samples import (
    Sample,
    best_answer,
    comparable,
    labelled,
    pairs,
    tiers_of,
    ties,
    wholly_trained,
    with_answers,
)
from rlhf_ray.data.json_values import Text
from rlhf_ray.data.messages import as_chat
from rlhf_ray.data.rows.records import LABELLED, RANKINGS, RecordKind
from rlhf_ray.data.rows.rows import LinkedRows, Rows
from rlhf_ray.errors import DataError, RowError, UnusableRow
from rlhf_ray.types import IntArray, LabelledAnswer, Ranking


def check_labels(rows: Iterable[LabelledAnswer]) -> None:
    """Refuse answers of one label alone, from which nothing tells good from bad.

    Raises:
        DataError: All are good, or all are bad.
    """
    labels: set[bool] = set()
    for row in rows:
        labels.add(row.desirable)
        if len(labels) == 2:
            return
    for label in labels:
        word, other = ("good", "false") if label else ("bad", "true")
        raise DataError(
            f"every answer is labelled {word}: kto compares good answers with bad ones; give rows "
            f"with label {other} as well, or name the right column by data.columns: {{label: ...}}"
        )


def best_of(ranking: Ranking) -> Ranking:
    """A ranking's best answer, as `Answers` gives it."""
    return replace(ranking, answer_ids_K=ranking.answer_ids_K[:1])


@dataclass(frozen=True, kw_only=True)
class Rankings(Tokenization[Ranking]):
    """Rankings as they come, pairs among them.

    Equal and empty answers are counted and left out; ties are counted and stay, see `Ranking`.
    `max_length` bounds a prompt with its longest answer. Truncation leaves a prompt its *last*
    tokens, as many as the longest answer has room for but up to half of the limit in any case, and
    answers then their *first*.
    """

    what: ClassVar[str] = "rankings"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"preferences"})
    kind: ClassVar[RecordKind[Ranking]] = RANKINGS

    def parts(self, sample: Sample) -> Iterator[Sample | RowError]:
        """The ranking of answers that can be compared; its ties and other answers are counted."""
        for part in comparable(sample):
            yield part
            if isinstance(part, Sample) and len(part.answers_K) > 2:
                yield from ties(part)

    def examples(self, sample: Sample) -> Iterator[Kept[Ranking] | RowError]:
        """One ranking; an answer with the tokens of a better one is counted and left out."""
        kept = self.tokenize(sample)
        for _ in range(len(sample.answers_K) - len(kept.row.answer_ids_K)):
            yield _equal(sample)
        yield kept

    def tokenize(self, sample: Sample) -> Kept[Ranking]:
        """Token ids of the prompt and of every answer whose tokens are none of a better one's."""
        prompt_ids_T, answer_ids_K, truncated = _tokens(self, sample)
        kept = _distinct(answer_ids_K)
        tiers_K = tiers_of(with_answers(sample, kept))
        if len(kept) < 2:
            raise _equal(sample)
        if tiers_K[0] == tiers_K[-1]:
            raise UnusableRow(sample.where, "tie")
        has_ties = len(set(tiers_K)) < len(tiers_K)
        ranking = Ranking(
            example_id=sample.sample_id,
            prompt_ids_T=prompt_ids_T,
            answer_ids_K=tuple(answer_ids_K[index] for index in kept),
            margin=sample.margin or 0.0,
            tiers_K=tiers_K if has_ties else (),
        )
        return Kept(row=ranking, truncated=truncated)


@dataclass(frozen=True, kw_only=True)
class Pairs(Rankings):
    """Rankings of two: a longer one gives all its pairs. All tokens of an answer are trained."""

    what: ClassVar[str] = "pairs"

    def parts(self, sample: Sample) -> Iterator[Sample | RowError]:
        """Every pair of answers that is no tie, the better first."""
        for part in comparable(wholly_trained(sample)):
            yield from [part] if isinstance(part, RowError) else pairs(part)


@dataclass(frozen=True, kw_only=True)
class LabelledAnswers(Tokenization[LabelledAnswer]):
    """Single answers that are good or bad."""

    what: ClassVar[str] = "labelled answers"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"labels", "preferences"})
    kind: ClassVar[RecordKind[LabelledAnswer]] = LABELLED

    def parts(self, sample: Sample) -> Iterator[Sample | RowError]:
        """Every answer with its label."""
        return labelled(wholly_trained(sample))

    def tokenize(self, sample: Sample) -> Kept[LabelledAnswer]:
        """Token ids of prompt and answer; the answer to another prompt comes by `link`."""
        best_answer(sample)  # to be sure that there is one
        prompt_ids_T, [answer_ids_T], truncated = _tokens(self, sample)
        row = LabelledAnswer(
            example_id=sample.sample_id,
            prompt_ids_T=prompt_ids_T,
            answer_ids_K=(answer_ids_T, answer_ids_T),
            desirable=bool(sample.desirable),
        )
        return Kept(row=row, truncated=truncated)

    def link(self, rows: Rows[LabelledAnswer]) -> Rows[LabelledAnswer]:
        """Give each row the answer of another."""
        return LinkedRows(rows, max_length=self.limit.num_tokens)


@dataclass(frozen=True, kw_only=True)
class Answers(Tokenization[Ranking]):
    """The best answer of a row behind its prompt."""

    what: ClassVar[str] = "answers"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"examples", "preferences"})
    kind: ClassVar[RecordKind[Ranking]] = RANKINGS

    def tokenize(self, sample: Sample) -> Kept[Ranking]:
        """Token ids of the prompt and of its answer."""
        prompt, answer = best_answer(sample)
        only = replace(
            sample, prompt=prompt, answers_K=(answer,), truncated_K=sample.truncated_K[:1]
        )
        prompt_ids_T, answer_ids_K, truncated = _tokens(self, only)
        ranking = Ranking(
            example_id=sample.sample_id, prompt_ids_T=prompt_ids_T, answer_ids_K=answer_ids_K
        )
        return Kept(row=ranking, truncated=truncated)


def _equal(sample: Sample) -> UnusableRow:
    return UnusableRow(sample.where, "equal answers", "they have the same tokens")


def _distinct(answer_ids_K: Sequence[IntArray]) -> list[int]:
    """Indices of answers that have not the tokens of one before them."""
    kept: list[int] = []
    for index, ids_T in enumerate(answer_ids_K):
        if not any(np.array_equal(ids_T, answer_ids_K[other]) for other in kept):
            kept.append(index)
    return kept


def _tokens(job: Tokenization[Any], sample: Sample) -> tuple[IntArray, tuple[IntArray, ...], bool]:
    """Token ids of prompt and answers, and whether any had to be cut."""
    assert sample.prompt is not None
    job.limit.check_text(sample.num_characters, sample.where)
    prompt: Text = as_chat(sample.prompt, "user") if job.chat else sample.prompt
    answers_K = sample.answers_K
    if job.limit.truncates:
        prompt = ending(prompt, job.limit.num_tokens, job.tokenizer)
        answers_K = tuple(
            beginning(answer, job.limit.num_tokens, job.tokenizer) for answer in answers_K
        )
    tokenized_K = tokenize_answers(
        job.tokenizer,
        prompt,
        answers_K,
        truncated_K=sample.truncated_K,
        columns=sample.columns,
        where=sample.where,
    )
    prompt_ids_T = tokenized_K[0][0]
    if not prompt_ids_T:
        raise RowError(sample.where, "the prompt holds no tokens")
    limit = job.limit.num_tokens
    longest = max(len(answer_ids_T) for _, answer_ids_T in tokenized_K)
    fits = job.limit.fits(len(prompt_ids_T) + longest, sample.where)
    if not fits:
        room = max(limit - longest, limit // 2, 1)
        prompt_ids_T = keep_last(prompt_ids_T, room, job.tokenizer)
    room = limit - len(prompt_ids_T)
    answer_ids_K = tuple(np.array(answer[:room], dtype=np.int32) for _, answer in tokenized_K)
    return np.array(prompt_ids_T, dtype=np.int32), answer_ids_K, not fits
