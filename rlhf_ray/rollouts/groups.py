"""What of a group is compared, and what of it can be trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from rlhf_ray.roles.groups import RolloutGroup, ScoredGroup
from rlhf_ray.types import FinishReason, Score


def with_scores(scored: ScoredGroup) -> ScoredGroup:
    """The same group with the samples to which a reward applied."""
    return scored.where([score.total is not None for score in scored.scores_G])


def trainable(groups: Iterable[ScoredGroup], *, smallest_group: int) -> list[ScoredGroup]:
    """The groups of which enough samples have a score, each with those samples.

    Args:
        groups: All of them.
        smallest_group: Scored samples that a group needs: 2 where it is compared with itself.
    """
    left = [with_scores(scored) for scored in groups]
    return [scored for scored in left if len(scored.scores_G) >= smallest_group]


def trained_of(
    groups: Iterable[ScoredGroup], trains: Callable[[FinishReason], bool]
) -> list[RolloutGroup]:
    """The groups with the samples that enter the losses; those without any are left out."""
    left = [
        scored.group.where([trains(summary.finish_reason) for summary in scored.group.summaries_G])
        for scored in groups
    ]
    return [group for group in left if group.summaries_G]


def compared_scores(scores_G: Sequence[Score], *, apart: bool) -> list[list[float]]:
    """What of a group is compared: the totals, or `apart` each reward's own values."""
    if not apart:
        return [[score.total for score in scores_G if score.total is not None]]
    names = scores_G[0].parts if scores_G else ()
    columns = [[score.parts[name] for score in scores_G] for name in names]
    return [[value for value in column if value is not None] for column in columns]


def has_spread(scores_G: Sequence[Score], *, apart: bool) -> bool:
    """Whether a group's scores differ, in any one of what is compared.

    A group whose scores are equal has advantage 0 and teaches nothing; so has one of fewer than two
    samples. Source: DAPO, https://arxiv.org/abs/2503.14476, section 3.2.
    """
    return any(len(set(scores)) > 1 for scores in compared_scores(scores_G, apart=apart))


def require_finite(scored: ScoredGroup) -> None:
    """Before spread decides about a group: NaN differs from all scores, itself included.

    Raises:
        ValueError: A score is not finite.
    """
    totals = [score.total for score in scored.scores_G if score.total is not None]
    parts = [v for score in scored.scores_G for v in score.parts.values() if v is not None]
    if not all(math.isfinite(value) for value in (*totals, *parts)):
        raise ValueError(
            f"scores of draw {scored.group.draw} must be finite, got {list(scored.scores_G)}"
        )
