"""What an evaluation of SFT, a reward model or DPO looks like to a reader: a few rows as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlhf_ray.algorithms.calibration import ranking_calibration
from rlhf_ray.metrics.log import Table
from rlhf_ray.types import IntArray, LabelledAnswer, Ranking, SftExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def ranking_table(
    step: int,
    rankings: Sequence[Ranking],
    outcomes_B: Sequence[tuple[float, ...]],
    tokenizer: PreTrainedTokenizerBase,
) -> Table:
    """Best and worst answer of each ranking, with what the model makes of them."""
    return Table(
        step=step,
        name="pairs",
        columns=("prompt", "preferred", "its reward", "other", "reward of the other"),
        rows=[
            (
                _text(ranking.prompt_ids_T, tokenizer),
                _text(ranking.answer_ids_K[0], tokenizer),
                outcome[0],
                _text(ranking.answer_ids_K[-1], tokenizer),
                outcome[-1],
            )
            for ranking, outcome in zip(rankings, outcomes_B, strict=True)
        ],
    )


def labelled_table(
    step: int,
    answers: Sequence[LabelledAnswer],
    outcomes_B: Sequence[tuple[float, ...]],
    tokenizer: PreTrainedTokenizerBase,
) -> Table:
    """Answers with their labels and implicit rewards."""
    return Table(
        step=step,
        name="answers",
        columns=("prompt", "answer", "good", "reward"),
        rows=[
            (
                _text(answer.prompt_ids_T, tokenizer),
                _text(answer.answer_ids_K[0], tokenizer),
                "yes" if answer.desirable else "no",
                outcome[0],
            )
            for answer, outcome in zip(answers, outcomes_B, strict=True)
        ],
    )


def calibration_table(
    step: int, rankings: Sequence[Ranking], outcomes_B: Sequence[tuple[float, ...]]
) -> Table:
    """The reliability curve over all pairs: how sure the model was, and how often it was right."""
    return Table(
        step=step,
        name="calibration",
        columns=("said", "was right", "pairs"),
        rows=[
            (bin_.confidence, bin_.accuracy, bin_.count)
            for bin_ in ranking_calibration(outcomes_B, [row.order_K for row in rankings])
        ],
    )


def continuation_table(
    step: int,
    examples: Sequence[SftExample],
    written: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> Table:
    """What the model wrote after each example's prompt, beside what it should have written."""
    return Table(
        step=step,
        name="continuations",
        columns=("prompt", "written", "wanted"),
        rows=[
            (
                _text(example.token_ids_T[: _prompt_len(example)], tokenizer),
                _text(np.asarray(ids, dtype=np.int32), tokenizer),
                _text(example.token_ids_T[_prompt_len(example) :], tokenizer),
            )
            for example, ids in zip(examples, written, strict=True)
        ],
    )


def prompts_of(examples: Sequence[SftExample]) -> list[list[int]]:
    """What stands before the first trained token; of a text that is trained whole, its first half.

    A prompt has at least one token, because a model continues something.
    """
    return [example.token_ids_T[: _prompt_len(example)].tolist() for example in examples]


def _prompt_len(example: SftExample) -> int:
    first = int(np.argmax(example.trained_T))
    return first if first > 1 else max(1, example.num_tokens // 2)


def _text(token_ids_T: IntArray, tokenizer: PreTrainedTokenizerBase) -> str:
    text: str = tokenizer.decode(token_ids_T.tolist(), skip_special_tokens=True)
    return text.strip()
