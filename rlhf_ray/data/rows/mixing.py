"""Several data sets as one sequence of rows: a function of the seed, and of nothing else.

The draws are those of `datasets.interleave_datasets`, which takes 50 times as long for a million
places, and gives a data set whose rows do not know how often they came before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]

_DRAWS = 65_536  # at a time; how many does not change what is drawn


def mix(
    num_rows_by_source: Sequence[int],
    probabilities: Sequence[float],
    *,
    until: Literal["until_all", "until_first"],
    seed: int,
) -> tuple[Places, Places]:
    """Draw a source for each place, and take that source's rows in their order, over and over.

    Args:
        num_rows_by_source: At least one each.
        probabilities: Relative to one another.
        until: `until_all` ends when every source was seen whole at least once, `until_first` when
            any was seen whole.
        seed: Of the draws.

    Returns:
        The source of each place, and how many of its rows came before; a number beyond its last row
        begins again at its first.
    """
    num_rows = np.array(num_rows_by_source)
    drawn: list[Places] = []
    counts = np.zeros(len(num_rows), dtype=np.int64)
    enough = np.all if until == "until_all" else np.any
    for block in draws(probabilities, seed=seed):
        drawn.append(block)
        counts += np.bincount(block, minlength=len(num_rows))
        if enough(counts >= num_rows):
            break
    source_of = np.concatenate(drawn)
    taken = np.empty_like(source_of)
    seen_whole_at = []
    for source, count in enumerate(counts):
        here = np.flatnonzero(source_of == source)
        taken[here] = np.arange(count)
        if count >= num_rows[source]:
            seen_whole_at.append(int(here[num_rows[source] - 1]))
    last = max(seen_whole_at) if until == "until_all" else min(seen_whole_at)
    return source_of[: last + 1], taken[: last + 1]


def draws(probabilities: Sequence[float], *, seed: int) -> Iterator[Places]:
    """Sources as they are drawn, without end, block by block."""
    shares = np.array(probabilities) / sum(probabilities)
    generator = np.random.Generator(np.random.PCG64(seed))
    while True:
        yield generator.choice(len(shares), size=_DRAWS, p=shares)
