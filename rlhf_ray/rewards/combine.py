"""From every scorer's own values to the one score that is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf_ray.types import Score


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
    return [
        _combine_row({name: values[row] for name, values in values_B.items()}, weights)
        for row in range(num_rows)
    ]


def _combine_row(parts: dict[str, float | None], weights: Mapping[str, float]) -> Score:
    weighted = [weights[name] * value for name, value in parts.items() if value is not None]
    return Score(total=sum(weighted) if weighted else None, parts=parts)
