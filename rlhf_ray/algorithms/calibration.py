"""Whether a reward model's probabilities are right as often as they say."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

RANKING_BINS = 20  # of 0 to 1; confidences in an order fill the upper ten


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """Predictions whose confidence lies in one range: a point of the reliability curve.

    Attributes:
        confidence: Their mean confidence.
        accuracy: The share of them that is right.
        count: How many.
    """

    confidence: float
    accuracy: float
    count: int


def pair_confidences(
    gaps_B: npt.ArrayLike,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """What Bradley-Terry scores predict of pairs, and whether it is so.

    Args:
        gaps_B: Score of the better answer less that of the worse.

    Returns:
        The probability σ(abs(gap)) of the order that the scores say, and whether it is the right
        one (a tie is not).
    """
    gaps = np.asarray(gaps_B, dtype=np.float64)
    return 1.0 / (1.0 + np.exp(-np.abs(gaps))), gaps > 0.0


def calibration(
    probabilities_B: npt.ArrayLike, correct_B: npt.ArrayLike, num_bins: int
) -> tuple[CalibrationBin, ...]:
    """The reliability curve of predictions in `num_bins` ranges of equal width, without empty ones.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 2. The ranges span 0 to 1 and
    each holds its upper end.

    Raises:
        ValueError: There are fewer bins than 1, a probability is not one, or lengths differ.
    """
    probabilities = np.asarray(probabilities_B, dtype=np.float64)
    correct = np.asarray(correct_B, dtype=np.bool_)
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    if probabilities.shape != correct.shape:
        raise ValueError(
            f"correct_B must have the shape {probabilities.shape}, got {correct.shape}"
        )
    outside = probabilities[~((probabilities >= 0.0) & (probabilities <= 1.0))]
    if outside.size:
        raise ValueError(f"probabilities_B must lie in 0 to 1, got {outside[0]}")
    bins_B = np.clip(np.ceil(probabilities * num_bins) - 1, 0, num_bins - 1)
    return tuple(
        CalibrationBin(
            confidence=float(probabilities[bins_B == b].mean()),
            accuracy=float(correct[bins_B == b].mean()),
            count=int((bins_B == b).sum()),
        )
        for b in np.unique(bins_B)
    )


def ranking_calibration(
    scores_B: Sequence[Sequence[float]], tiers_B: Sequence[Sequence[int]]
) -> tuple[CalibrationBin, ...]:
    """The reliability curve of a reward model over all pairs of rankings that are no ties.

    Scores and tiers are those of each ranking's answers, the best first.
    """
    gaps = [
        scores[better] - scores[worse]
        for scores, tiers in zip(scores_B, tiers_B, strict=True)
        for better, worse in combinations(range(len(scores)), 2)
        if tiers[better] < tiers[worse]
    ]
    return calibration(*pair_confidences(gaps), num_bins=RANKING_BINS)


def expected_calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Mean distance of accuracy from confidence, a bin weighing as many as it holds; NaN of none.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, eq. 3.
    """
    total = sum(b.count for b in bins)
    gap = sum(b.count * abs(b.accuracy - b.confidence) for b in bins)
    return gap / total if total else float("nan")
