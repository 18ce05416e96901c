"""The papers' formulas of supervised losses in float64 NumPy, one pair or one ranking at a time.

Probabilities are taken by `exp` and odds by division, as the papers write them: nothing here is
meant for extreme numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BETA, EPSILON, ALPHA, DISCOPOP_TAU, SIMPO_GAMMA = 0.4, 0.15, 0.6, 0.5, 0.7
DESIRABLE_WEIGHT, UNDESIRABLE_WEIGHT = 1.2, 0.8


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Log-probabilities of both answers under both models, and lengths."""

    chosen: float
    rejected: float
    reference_chosen: float
    reference_rejected: float
    chosen_len: int
    rejected_len: int

    @property
    def u(self) -> tuple[float, float]:
        """Policy / reference probability of both answers."""
        return exp(self.chosen - self.reference_chosen), exp(
            self.rejected - self.reference_rejected
        )


def log(x: float) -> float:
    return float(np.log(x))


def exp(x: float) -> float:
    return float(np.exp(x))


DIVERGENCES: dict[str, Callable[[float], float]] = {
    "reverse_kl": log,
    "forward_kl": lambda u: 1.0 - 1.0 / u,
    "js_divergence": lambda u: log(2.0 * u / (1.0 + u)),
    "alpha_divergence": lambda u: (u ** (ALPHA - 1.0) - 1.0) / (ALPHA - 1.0),
}


def sigma(x: float) -> float:
    return 1.0 / (1.0 + exp(-x))


def smoothed(logit: float, epsilon: float = EPSILON) -> float:
    return -(1.0 - epsilon) * log(sigma(logit)) - epsilon * log(1.0 - sigma(logit))


def gap(pair: Pair, divergence: str) -> float:
    score = DIVERGENCES[divergence]
    return score(pair.u[0]) - score(pair.u[1])


def mean_gap(pair: Pair, divergence: str) -> float:
    score = DIVERGENCES[divergence]
    return score(pair.u[0]) / pair.chosen_len - score(pair.u[1]) / pair.rejected_len


def robust(pair: Pair, divergence: str) -> float:
    clean = -log(sigma(BETA * gap(pair, divergence)))
    flipped = -log(sigma(-BETA * gap(pair, divergence)))
    return ((1.0 - EPSILON) * clean - EPSILON * flipped) / (1.0 - 2.0 * EPSILON)


def exo_pair(pair: Pair, divergence: str) -> float:
    p = np.array([sigma(BETA * gap(pair, divergence)), sigma(-BETA * gap(pair, divergence))])
    return float(np.sum(p * np.log(p / np.array([1.0 - EPSILON, EPSILON]))))


def discopop(pair: Pair, divergence: str) -> float:
    rho = BETA * gap(pair, divergence)
    gate = sigma(rho / DISCOPOP_TAU)
    return (1.0 - gate) * log(1.0 + exp(-rho)) + gate * exp(-rho)


def nca_pair(pair: Pair, divergence: str) -> float:
    r_chosen, r_rejected = (BETA * log(u) for u in pair.u)
    return -log(sigma(r_chosen)) - 0.5 * sum(log(sigma(-r)) for r in (r_chosen, r_rejected))


def bco_pair(pair: Pair, divergence: str) -> float:
    return -log(sigma(BETA * log(pair.u[0]))) - log(sigma(-BETA * log(pair.u[1])))


def sppo_hard(pair: Pair, divergence: str) -> float:
    # eta = 1 / beta; the win rate of the winner is 1, of the loser 0.
    eta = 1.0 / BETA
    return (log(pair.u[0]) - eta * (1.0 - 0.5)) ** 2 + (log(pair.u[1]) - eta * (0.0 - 0.5)) ** 2


def apo_zero(pair: Pair, divergence: str) -> float:
    return -sigma(BETA * log(pair.u[0])) + sigma(BETA * log(pair.u[1])) + 1.0


def apo_down(pair: Pair, divergence: str) -> float:
    r_chosen, r_rejected = (BETA * log(u) for u in pair.u)
    return sigma(r_chosen) - sigma(r_chosen - r_rejected) + 1.0


def simpo(pair: Pair, divergence: str) -> float:
    chosen = BETA / pair.chosen_len * pair.chosen
    return smoothed(chosen - BETA / pair.rejected_len * pair.rejected - SIMPO_GAMMA)


def odds_ratio(pair: Pair) -> float:
    p_chosen = exp(pair.chosen / pair.chosen_len)
    p_rejected = exp(pair.rejected / pair.rejected_len)
    odds = (p_chosen / (1.0 - p_chosen)) / (p_rejected / (1.0 - p_rejected))
    return -log(sigma(log(odds)))


# Losses of a step: the mean over its pairs of a pair's own loss,


def mean_of(loss: Callable[[Pair, str], float]) -> Callable[[list[Pair], str], float]:
    return lambda pairs, divergence: float(np.mean([loss(pair, divergence) for pair in pairs]))


# ... or of what takes all pairs together.


def sft(pairs: list[Pair], divergence: str) -> float:
    return -sum(pair.chosen for pair in pairs) / sum(pair.chosen_len for pair in pairs)


def orpo(pairs: list[Pair], divergence: str) -> float:
    return sft(pairs, divergence) + BETA * float(np.mean([odds_ratio(pair) for pair in pairs]))


def quantile_loss(upper: list[float], lower: list[float]) -> float:
    gaps = [u - v for u, v in zip(sorted(upper), sorted(lower), strict=True)]
    return float(np.mean([smoothed(BETA * x) for x in gaps]))


def aot(pairs: list[Pair], divergence: str) -> float:
    return quantile_loss(
        [p.chosen - p.rejected for p in pairs],
        [p.reference_chosen - p.reference_rejected for p in pairs],
    )


def aot_unpaired(pairs: list[Pair], divergence: str) -> float:
    return quantile_loss([log(p.u[0]) for p in pairs], [log(p.u[1]) for p in pairs])


PAIRS: dict[str, Callable[[list[Pair], str], float]] = {
    "sigmoid": mean_of(lambda pair, divergence: smoothed(BETA * gap(pair, divergence))),
    "robust": mean_of(robust),
    "hinge": mean_of(lambda pair, divergence: max(0.0, 1.0 - BETA * gap(pair, divergence))),
    "ipo": mean_of(lambda pair, divergence: (mean_gap(pair, divergence) - 0.5 / BETA) ** 2),
    "sigmoid_norm": mean_of(
        lambda pair, divergence: -log(sigma(BETA * mean_gap(pair, divergence)))
    ),
    "exo_pair": mean_of(exo_pair),
    "discopop": mean_of(discopop),
    "nca_pair": mean_of(nca_pair),
    "bco_pair": mean_of(bco_pair),
    "sppo_hard": mean_of(sppo_hard),
    "apo_zero": mean_of(apo_zero),
    "apo_down": mean_of(apo_down),
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "sft": sft,
    "simpo": mean_of(simpo),
    "orpo": orpo,
}
# Those whose formula has f'(u) where the others' has log u.
WITH_DIVERGENCE = {
    "sigmoid", "robust", "hinge", "ipo", "sigmoid_norm", "exo_pair", "discopop",
}  # fmt: skip


def kto(logps: Array, reference_logps: Array, desirable: list[bool], z0: float) -> float:
    """Eq. 7: the mean of λ_y - v(x, y), v by eq. 8."""
    losses = []
    for r, good in zip(logps - reference_logps, desirable, strict=True):
        if good:
            losses.append(DESIRABLE_WEIGHT - DESIRABLE_WEIGHT * sigma(BETA * (r - z0)))
        else:
            losses.append(UNDESIRABLE_WEIGHT - UNDESIRABLE_WEIGHT * sigma(BETA * (z0 - r)))
    return float(np.mean(losses))


LABELS: dict[str, Callable[[Array, Array, list[bool], float], float]] = {"kto": kto}


# Rewards: scores of one ranking, the best first, and their tiers -> its loss.


def ordered_pairs(tiers: Array) -> list[tuple[int, int]]:
    """Of a ranking: no two of one tier."""
    places = range(len(tiers))
    return [(i, j) for i in places for j in places if tiers[i] < tiers[j]]


def mean_over_pairs(values: list[float]) -> float:
    """0 where all answers are ties."""
    return float(np.mean(values)) if values else 0.0


def bradley_terry(scores: Array, margin: float, tiers: Array) -> float:
    margin = margin if len(scores) == 2 else 0.0
    pairs = ordered_pairs(tiers)
    return mean_over_pairs([-log(sigma(scores[i] - scores[j] - margin)) for i, j in pairs])


def logexp(scores: Array, margin: float, tiers: Array) -> float:
    pairs = ordered_pairs(tiers)
    return mean_over_pairs([log(1.0 + exp(scores[j] - scores[i])) for i, j in pairs])


def plackett_luce(scores: Array, margin: float, tiers: Array) -> float:
    worth = np.exp(scores)
    drawn = [worth[i] / (worth[i] + worth[tiers > tiers[i]].sum()) for i in range(len(scores))]
    return -float(np.log(np.prod(drawn)))


def centering(scores: Array, margin: float, tiers: Array) -> float:
    return mean_over_pairs([(scores[i] + scores[j]) ** 2 for i, j in ordered_pairs(tiers)])


REWARDS: dict[str, Callable[[Array, float, Array], float]] = {
    "bradley_terry": bradley_terry,
    "logexp": logexp,
    "plackett_luce": plackett_luce,
}


# SFT: log-probabilities of tokens -> (losses, gradients of their sum).

SFT: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "nll": lambda logprobs: (-logprobs, -np.ones_like(logprobs)),
    "dft": lambda logprobs: (-np.exp(logprobs) * logprobs, -np.exp(logprobs)),
}
