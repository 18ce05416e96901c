"""What a scorer is given, what it may give back, and the one score that several make."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, TypeAlias

from rlhf_ray.errors import FailureCause, RunError
from rlhf_ray.types import Rollout, Score

Messages: TypeAlias = list[dict[str, str]]
Scores: TypeAlias = list[float | None]


_LARGEST: Any = sys.float_info.max


class RewardError(RunError):
    """A scorer failed: a failure with a cause, never a reward of 0.

    Attributes:
        cause: Of what kind.
    """

    cause: FailureCause = "raised"

    @classmethod
    def of(cls, message: str, *, cause: FailureCause) -> RewardError:
        """One with this cause."""
        error = cls(message)
        error.cause = cause
        return error


@dataclass(frozen=True, kw_only=True)
class ScoringBatch:
    """B completions to score, in the form that TRL's reward functions know.

    Attributes:
        prompt_ids_B: Names the rows in errors.
        prompts_B: Each a string, or a list of chat messages.
        completions_B: To a string prompt a string, to a chat a list of one assistant's message; in
            an environment, to either, of all messages that followed, whose last one is the
            assistant's.
        prompt_token_ids_B: What was answered, chat template and all.
        completion_ids_B: The responses' token ids, the end token and those that an environment
            wrote included.
        opens_reasoning_B: Whether the prompt ends inside of a block of reasoning (`<think>`).
        columns: The data set's other columns: name -> one value a row, `None` where a row has none.
    """

    prompt_ids_B: list[str]
    prompts_B: list[str | Messages]
    completions_B: list[str | Messages]
    prompt_token_ids_B: list[list[int]]
    completion_ids_B: list[list[int]]
    opens_reasoning_B: list[bool]
    columns: dict[str, list[Any]]

    @classmethod
    def from_rollouts(cls, rollouts_B: Sequence[Rollout]) -> ScoringBatch:
        """The same rows in the same order."""
        prompts_B = [rollout.prompt for rollout in rollouts_B]
        names = sorted({name for prompt in prompts_B for name in prompt.columns})
        return cls(
            prompt_ids_B=[prompt.prompt_id for prompt in prompts_B],
            prompts_B=[prompt.text for prompt in prompts_B],
            completions_B=[_completion(rollout) for rollout in rollouts_B],
            prompt_token_ids_B=[list(prompt.token_ids_T) for prompt in prompts_B],
            completion_ids_B=[rollout.response_ids_T.tolist() for rollout in rollouts_B],
            opens_reasoning_B=[prompt.opens_reasoning for prompt in prompts_B],
            columns={name: [prompt.columns.get(name) for prompt in prompts_B] for name in names},
        )

    def __len__(self) -> int:
        """Rows."""
        return len(self.prompt_ids_B)

    def part(self, begin: int, end: int) -> ScoringBatch:
        """Rows `begin` to `end - 1`."""
        lists_B = {
            field.name: getattr(self, field.name)[begin:end]
            for field in fields(self)
            if field.name.endswith("_B")
        }
        columns = {name: values[begin:end] for name, values in self.columns.items()}
        return ScoringBatch(**lists_B, columns=columns)


def _completion(rollout: Rollout) -> str | Messages:
    if rollout.messages:  # whatever the prompt is: its text has what others said as well
        return [dict(message) for message in rollout.messages]
    if isinstance(rollout.prompt.text, str):
        return rollout.text
    return [{"role": "assistant", "content": rollout.text}]


def completion_text(completion: str | Messages) -> str:
    """A completion's text, whichever of its two forms it has; of several messages the last."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def check_scores(values: Any, batch: ScoringBatch, scorer: str) -> Scores:
    """What a scorer, named in errors, returned: one finite float or `None` a row.

    Raises:
        RewardError: Not one value a row, or a value that is neither a finite number nor `None`.
    """
    try:
        # Without an order (a set), or with keys or characters in place of scores.
        values_B = None if isinstance(values, Set | Mapping | str | bytes) else list(values)
    except TypeError:
        values_B = None
    if values_B is None:
        raise RewardError(
            f"{scorer} must return a list of {len(batch)} scores, got {type(values).__name__}"
        )
    if len(values_B) != len(batch):
        raise RewardError(f"{scorer} must return {len(batch)} scores, got {len(values_B)}")
    return [
        _check_score(value, prompt_id, scorer)
        for value, prompt_id in zip(values_B, batch.prompt_ids_B, strict=True)
    ]


def _check_score(value: Any, prompt_id: str, scorer: str) -> float | None:
    # NumPy's and torch's scalars.
    number = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if number is None:
        return None
    if not isinstance(number, Real) or not abs(number) <= _LARGEST:
        raise RewardError(
            f"{scorer}: the score of prompt {prompt_id!r} must be a finite number or None, "
            f"got {number!r:.80}"
        )
    return float(number)


def combine(
    values_B: Mapping[str, Sequence[float | None]],
    weights: Mapping[str, float],
    *,
    num_rows: int,
) -> list[Score]:
    """Add up each row's values by weight; a scorer that does not apply adds nothing.

    A row that no scorer applies to has no total: neither 0, which would be a reward, nor an error.

    Args:
        values_B: Scorer's name -> one value a row, `None` where it does not apply.
        weights: Scorer's name -> its factor in the sum.
        num_rows: B.

    Raises:
        ValueError: Scorers without a weight, or not one value a row.
    """
    if set(values_B) != set(weights):
        raise ValueError(
            f"weights must be those of the scorers {sorted(values_B)}, got {sorted(weights)}"
        )
    for name, values in values_B.items():
        if len(values) != num_rows:
            raise ValueError(f"scorer {name!r} must give {num_rows} values, got {len(values)}")
    scores = []
    for row in range(num_rows):
        parts = {name: values[row] for name, values in values_B.items()}
        weighted = [weights[name] * value for name, value in parts.items() if value is not None]
        scores.append(Score(total=sum(weighted) if weighted else None, parts=parts))
    return scores
