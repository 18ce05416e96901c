"""Groups: the samples of one draw, told by the draw's number, and what of them is trained."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_ray.types import RolloutSummary, Score


def rows_by_draw(summaries_B: Sequence[RolloutSummary]) -> list[list[int]]:
    """The rows of each group; groups in the order of their first rows."""
    groups: dict[int, list[int]] = {}
    for row, summary in enumerate(summaries_B):
        groups.setdefault(summary.draw, []).append(row)
    return list(groups.values())


def scored_rows(scores_B: Sequence[Score], rows: Sequence[int]) -> list[int]:
    """Those of `rows` to which a reward applied."""
    return [row for row in rows if scores_B[row].total is not None]


def compared_scores(scores_G: Sequence[Score], *, apart: bool) -> list[list[float]]:
    """What of a group is compared: the totals, or `apart` each reward's own values."""
    if not apart:
        return [[score.total for score in scores_G if score.total is not None]]
    names = scores_G[0].parts if scores_G else ()
    columns = [[score.parts[name] for score in scores_G] for name in names]
    return [[value for value in column if value is not None] for column in columns]


def trainable_rows(
    summaries_B: Sequence[RolloutSummary], scores_B: Sequence[Score], *, smallest_group: int
) -> list[int]:
    """Rows to train on, in order: those with a score, in groups of enough of them.

    Args:
        summaries_B: Of all rows.
        scores_B: Of all rows.
        smallest_group: Scored samples that a group needs: 2 where it is compared with itself.
    """
    groups = [scored_rows(scores_B, rows) for rows in rows_by_draw(summaries_B)]
    return sorted(row for rows in groups if len(rows) >= smallest_group for row in rows)
