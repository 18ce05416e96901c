"""DAPO's dynamic sampling: fill a step with groups whose scores differ.

A group with equal scores has advantage 0 and teaches nothing. It is replaced by a new prompt, and
by exactly one: each round asks for as many prompts as are still missing, so nothing is generated
that will not be used. Source: https://arxiv.org/abs/2503.14476, section 3.2.
"""

import math
from collections.abc import Sequence
from typing import Literal


class DynamicSamplingExhausted(RuntimeError):
    """Too few groups with spread after the last round."""


def has_spread(scores_KG: Sequence[Sequence[float]]) -> bool:
    """Whether a group's scores differ, in any one of what is compared."""
    return any(len(set(scores_G)) > 1 for scores_G in scores_KG)


class GroupFilter:
    """Decides for one step which groups to train and how many prompts to draw.

    Every prompt that was asked for must be offered before the next round, so that each is accounted
    for: `accepted` and `filtered` hold their draws in order.

    Example:
        >>> while num_prompts := group_filter.next_round():
        ...     for draw_number, scores_KG in generate(draw(num_prompts)):
        ...         if group_filter.offer(draw_number, scores_KG):
        ...             keep(draw_number)
    """

    def __init__(
        self,
        *,
        num_prompts: int,
        max_rounds: int,
        on_exhausted: Literal["error", "partial"],
    ) -> None:
        """Creates the filter of one step.

        Args:
            num_prompts: Groups that the step needs, at least 1.
            max_rounds: Rounds of generation, the first one included, at least 1.
            on_exhausted: After the last round, raise or train with the groups there are,
                which may be none.

        Raises:
            ValueError: A number is below 1.
        """
        if num_prompts < 1:
            raise ValueError(f"num_prompts must be at least 1, got {num_prompts}")
        if max_rounds < 1:
            raise ValueError(f"max_rounds must be at least 1, got {max_rounds}")
        self.num_prompts = num_prompts
        self.max_rounds = max_rounds
        self.on_exhausted = on_exhausted
        self.num_rounds = 0
        self.accepted: list[int] = []
        self.filtered: list[int] = []
        self._num_outstanding = 0

    @property
    def num_missing(self) -> int:
        """Groups that the step still lacks."""
        return self.num_prompts - len(self.accepted)

    def next_round(self) -> int:
        """Starts a round and returns how many prompts to generate; 0 when the step is ready.

        Raises:
            DynamicSamplingExhausted: The rounds are used up and `on_exhausted` is "error".
        """
        assert self._num_outstanding == 0, f"{self._num_outstanding} groups are not accounted for"
        if self.num_missing == 0:
            return 0
        if self.num_rounds == self.max_rounds:
            if self.on_exhausted == "partial":
                return 0
            raise DynamicSamplingExhausted(
                f"{len(self.accepted)} of {self.num_prompts} groups have scores that differ after "
                f"{self.num_rounds} rounds ({len(self.filtered)} filtered); the prompts are too "
                "easy or too hard, or max_rounds is too low"
            )
        self.num_rounds += 1
        self._num_outstanding = self.num_missing
        return self._num_outstanding

    def offer(self, draw: int, scores_KG: Sequence[Sequence[float]]) -> bool:
        """Takes a group's scores and tells whether to train it.

        Args:
            draw: Tells the group: the same prompt may be drawn more than once.
            scores_KG: Of what is compared, the sum of the rewards or each of them, the scores of
                the samples that have one: spread in one is enough. Fewer than two have none.

        Raises:
            ValueError: A score is not finite.
        """
        for scores_G in scores_KG:
            if not all(math.isfinite(score) for score in scores_G):
                raise ValueError(f"scores of draw {draw} must be finite, got {list(scores_G)}")
        assert self._num_outstanding > 0, f"draw {draw} was not asked for in this round"
        self._num_outstanding -= 1
        is_accepted = has_spread(scores_KG)
        (self.accepted if is_accepted else self.filtered).append(draw)
        return is_accepted
