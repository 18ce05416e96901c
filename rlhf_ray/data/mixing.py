"""Several data sets as one sequence of rows: a function of the seed, and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

_DRAWS = 4096  # at a time


def mix(
    num_rows_by_source: Sequence[int],
    probabilities: Sequence[float],
    *,
    until: Literal["until_all", "until_first"],
    seed: int,
) -> list[tuple[int, int]]:
    """Draw a source for each place, and take that source's rows in their order, over and over.

    Args:
        num_rows_by_source: At least one each.
        probabilities: Relative to one another.
        until: `until_all` ends when every source was seen whole at least once, `until_first` when
            any was seen whole.
        seed: Of the draws.

    Returns:
        The source of each place and how many of its rows came before; a number beyond its last row
        begins again at its first.
    """
    shares = np.array(probabilities) / sum(probabilities)
    generator = np.random.Generator(np.random.PCG64(seed))
    taken = [0] * len(num_rows_by_source)
    unseen = set(range(len(num_rows_by_source)))
    places: list[tuple[int, int]] = []
    while True:
        for source in generator.choice(len(shares), size=_DRAWS, p=shares).tolist():
            places.append((source, taken[source]))
            taken[source] += 1
            if taken[source] == num_rows_by_source[source]:
                unseen.remove(source)
                if until == "until_first" or not unseen:
                    return places
