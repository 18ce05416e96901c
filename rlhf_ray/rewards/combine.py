"""From every scorer's own values to the one score that is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf_ray.rewards.batch import RewardError
from rlhf_ray.types import Score


def combine(
    values_B: Mapping[str, Sequence[float | None]],
    weights: Mapping[str, float],
    prompt_ids_B: Sequence[str],
) -> list[Score]:
    """Add up each row's values by weight; a scorer that does not apply adds nothing.

    Args:
        values_B: Scorer's name -> one value a row, `None` where it does not apply.
        weights: Scorer's name -> its factor in the sum.
        prompt_ids_B: Names the rows in errors.

    Raises:
        ValueError: Scorers without a weight, or not one value a row.
        RewardError: No scorer applies to a row.
    """
    if set(values_B) != set(weights):
        raise ValueError(
            f"weights must be those of the scorers {sorted(values_B)}, got {sorted(weights)}"
        )
    for name, values in values_B.items():
        if len(values) != len(prompt_ids_B):
            raise ValueError(
                f"scorer {name!r} must give {len(prompt_ids_B)} values, got {len(values)}"
            )
    return [
        _combine_row({name: values[row] for name, values in values_B.items()}, weights, prompt_id)
        for row, prompt_id in enumerate(prompt_ids_B)
    ]


def _combine_row(
    parts: dict[str, float | None], weights: Mapping[str, float], prompt_id: str
) -> Score:
    applicable = {name: value for name, value in parts.items() if value is not None}
    if not applicable:
        raise RewardError(
            f"no scorer applies to prompt {prompt_id!r}: {', '.join(parts)} all gave None"
        )
    total = sum(weights[name] * value for name, value in applicable.items())
    return Score(total=total, parts=parts)
