"""The papers' formulas in float64 NumPy, read as plainly as possible: loops, no masks, no tricks.

Losses: each oracle takes the own tokens of ONE sequence as arrays and a weight a token, and returns
the token losses and the gradient of Σ weight · loss with respect to the differentiated argument.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Sequences = list[Array]
LossOracle = Callable[[dict[str, Array], Array], tuple[Array, Array]]

CLIP_LOW, CLIP_HIGH, DUAL_CLIP, TAU_POS, TAU_NEG, VALUE_CLIP = 0.2, 0.28, 3.0, 1.0, 1.05, 0.3


def _surrogate(
    ratio: float, a: float, low: float = CLIP_LOW, high: float = CLIP_HIGH
) -> tuple[float, float]:
    """PPO's surrogate by cases: (loss, d loss / d log ratio)."""
    if a > 0 and ratio > 1 + high:
        return -(1 + high) * a, 0.0
    if a < 0 and ratio < 1 - low:
        return -(1 - low) * a, 0.0
    if a < 0 and ratio > DUAL_CLIP:
        return -DUAL_CLIP * a, 0.0
    return -ratio * a, -ratio * a


def ppo(x: dict[str, Array], w: Array) -> tuple[Array, Array]:
    ratio = np.exp(x["logprobs"] - x["old_logprobs"])
    pairs = [_surrogate(r, a) for r, a in zip(ratio, x["advantages"], strict=True)]
    return np.array([p[0] for p in pairs]), w * np.array([p[1] for p in pairs])


def gspo(x: dict[str, Array], w: Array) -> tuple[Array, Array]:
    n = len(w)
    s = np.prod(np.exp(x["logprobs"] - x["old_logprobs"])) ** (1.0 / n)  # eq. 7
    pairs = [_surrogate(s, a) for a in x["advantages"]]
    loss = np.array([p[0] for p in pairs])
    # d log s / d log π_t = 1 / n for every token t of the sequence.
    return loss, np.full(n, np.sum(w * np.array([p[1] for p in pairs])) / n)


def cispo(x: dict[str, Array], w: Array) -> tuple[Array, Array]:
    ratio = np.exp(x["logprobs"] - x["old_logprobs"])
    weight = np.minimum(np.maximum(ratio, 1 - CLIP_LOW), 1 + CLIP_HIGH)
    return -weight * x["advantages"] * x["logprobs"], -w * weight * x["advantages"]


def sapo(x: dict[str, Array], w: Array) -> tuple[Array, Array]:
    loss, grad = [], []
    for logp, old, a in zip(x["logprobs"], x["old_logprobs"], x["advantages"], strict=True):
        ratio = np.exp(logp - old)
        tau = TAU_POS if a > 0 else TAU_NEG
        p = 1.0 / (1.0 + np.exp(-tau * (ratio - 1.0)))
        loss.append(-4.0 / tau * p * a)
        grad.append(-4.0 * p * (1.0 - p) * ratio * a)  # the paper's weight w = 4 p (1 - p)
    return np.array(loss), w * np.array(grad)


def reinforce(x: dict[str, Array], w: Array) -> tuple[Array, Array]:
    return -x["advantages"] * x["logprobs"], -w * x["advantages"]


def value_clipped(x: dict[str, Array], w: Array) -> tuple[Array, Array]:
    loss, grad = [], []
    for v, old, target in zip(x["values"], x["old_values"], x["returns"], strict=True):
        near = min(max(v, old - VALUE_CLIP), old + VALUE_CLIP)
        if (near - target) ** 2 > (v - target) ** 2:  # the clip bites: v has no say
            loss.append(0.5 * (near - target) ** 2)
            grad.append(0.0)
        else:
            loss.append(0.5 * (v - target) ** 2)
            grad.append(v - target)
    return np.array(loss), w * np.array(grad)


def value_mse(x: dict[str, Array], w: Array) -> tuple[Array, Array]:
    error = x["values"] - x["returns"]
    return 0.5 * error**2, w * error


def entropy(x: dict[str, Array], w: Array) -> tuple[Array, Array]:
    return -x["entropy"], -w


def kl_k1(x: dict[str, Array], w: Array) -> tuple[Array, Array]:
    r = np.exp(x["reference_logprobs"]) / np.exp(x["logprobs"])
    return -np.log(r), w


def kl_k2(x: dict[str, Array], w: Array) -> tuple[Array, Array]:
    r = np.exp(x["reference_logprobs"]) / np.exp(x["logprobs"])
    return np.log(r) ** 2 / 2, -w * np.log(r)


def kl_k3(x: dict[str, Array], w: Array) -> tuple[Array, Array]:
    r = np.exp(x["reference_logprobs"]) / np.exp(x["logprobs"])
    return (r - 1) - np.log(r), w * (1 - r)


def kl_k3_weighted(x: dict[str, Array], w: Array) -> tuple[Array, Array]:
    ratio = np.exp(x["logprobs"]) / np.exp(x["old_logprobs"])
    r = np.exp(x["reference_logprobs"]) / np.exp(x["logprobs"])
    k3 = (r - 1) - np.log(r)
    return ratio * k3, w * (ratio * k3 + ratio * (1 - r))  # the product rule


# name in LOSS_CASES -> (oracle, the argument that is differentiated)
LOSSES: dict[str, tuple[LossOracle, str]] = {
    "policy/ppo": (ppo, "logprobs"),
    "policy/gspo": (gspo, "logprobs"),
    "policy/cispo": (cispo, "logprobs"),
    "policy/sapo": (sapo, "logprobs"),
    "policy/reinforce": (reinforce, "logprobs"),
    "value/clipped": (value_clipped, "values"),
    "value/mse": (value_mse, "values"),
    "term/entropy": (entropy, "entropy"),
    "term/kl_k2": (kl_k2, "logprobs"),
    "term/kl_k3": (kl_k3, "logprobs"),
    "term/kl_k3_weighted": (kl_k3_weighted, "logprobs"),
}

KL = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


# Corrections: ratios of own tokens to the engine, a list a sequence -> weights.


def token_ratios(old: Sequences, behaviour: Sequences) -> Sequences:
    return [np.exp(o) / np.exp(b) for o, b in zip(old, behaviour, strict=True)]


def geometric_ratios(old: Sequences, behaviour: Sequences) -> Sequences:
    """The geometric mean of a sequence's token ratios, at each of its tokens."""
    return [
        np.full(len(ratio), np.prod(ratio) ** (1.0 / max(len(ratio), 1)))
        for ratio in token_ratios(old, behaviour)
    ]


def sequence_ratios(old: Sequences, behaviour: Sequences) -> Sequences:
    """The product of a sequence's token ratios, at each of its tokens."""
    return [np.full(len(ratio), np.prod(ratio)) for ratio in token_ratios(old, behaviour)]


RATIOS = {"token": token_ratios, "geometric": geometric_ratios, "sequence": sequence_ratios}


def correct_none(ratio: Array, cap: float, low: float) -> Array:
    return np.ones_like(ratio)


def correct_truncated(ratio: Array, cap: float, low: float) -> Array:
    return np.array([min(k, cap) for k in ratio])


def correct_mask(ratio: Array, cap: float, low: float) -> Array:
    return np.array([k if low <= k <= cap else 0.0 for k in ratio])


CORRECTIONS = {"none": correct_none, "truncated": correct_truncated, "mask": correct_mask}


# Advantages: lists (a sequence each) of own tokens' rewards and values, and groups -> advantages.


def gae(
    rewards: Sequences, values: Sequences, groups: list[int], gamma: float, lam: float
) -> Sequences:
    """Eq. 16: the sum over l of (γ λ)^l δ_{t+l}."""
    out = []
    for r, v in zip(rewards, values, strict=True):
        n = len(r)
        v_next = np.append(v[1:], 0.0)
        delta = r + gamma * v_next - v
        out.append(
            np.array(
                [sum((gamma * lam) ** k * delta[t + k] for k in range(n - t)) for t in range(n)]
            )
        )
    return out


def _group_totals(rewards: Sequences, groups: list[int], i: int) -> Array:
    members = [j for j in range(len(groups)) if groups[j] == groups[i] and len(rewards[j])]
    return np.array([rewards[j].sum() for j in members])


def _per_sequence(
    rewards: Sequences, groups: list[int], fn: Callable[[float, Array], float]
) -> Sequences:
    totals = [r.sum() for r in rewards]
    return [
        np.full(len(r), fn(totals[i], _group_totals(rewards, groups, i)) if len(r) else 0.0)
        for i, r in enumerate(rewards)
    ]


def grpo(
    rewards: Sequences, values: Sequences, groups: list[int], gamma: float, lam: float
) -> Sequences:
    def fn(total: float, group: Array) -> float:
        if len(group) < 2:
            return 0.0
        return float((total - np.mean(group)) / (np.std(group, ddof=1) + 1e-6))

    return _per_sequence(rewards, groups, fn)


def dr_grpo(
    rewards: Sequences, values: Sequences, groups: list[int], gamma: float, lam: float
) -> Sequences:
    return _per_sequence(rewards, groups, lambda total, group: total - float(np.mean(group)))


def rloo(
    rewards: Sequences, values: Sequences, groups: list[int], gamma: float, lam: float
) -> Sequences:
    def fn(total: float, group: Array) -> float:
        if len(group) < 2:
            return 0.0
        return float(total - (np.sum(group) - total) / (len(group) - 1))

    return _per_sequence(rewards, groups, fn)


def whiten(sequences: Sequences, keep: list[bool]) -> Sequences:
    """To mean 0 and variance 1 over the tokens of the sequences to keep; 0 for the others."""
    kept = [s for s, k in zip(sequences, keep, strict=True) if k and len(s)]
    tokens = np.concatenate(kept) if kept else np.zeros(1)
    mean = tokens.mean()
    std = np.sqrt((tokens.var(ddof=1) if len(tokens) > 1 else 0.0) + 1e-8)
    return [
        (s - mean) / std if k else np.zeros_like(s) for s, k in zip(sequences, keep, strict=True)
    ]


def with_spread(rewards: Sequences, groups: list[int]) -> list[bool]:
    """Whether the totals of each sequence's group differ."""
    return [len(set(_group_totals(rewards, groups, i))) > 1 for i in range(len(groups))]


def reinforce_pp(
    rewards: Sequences, values: Sequences, groups: list[int], gamma: float, lam: float
) -> Sequences:
    returns = [
        np.array([sum(gamma ** (k - t) * r[k] for k in range(t, len(r))) for t in range(len(r))])
        for r in rewards
    ]
    return whiten(returns, [True] * len(returns))


def reinforce_pp_baseline(
    rewards: Sequences, values: Sequences, groups: list[int], gamma: float, lam: float
) -> Sequences:
    centered = dr_grpo(rewards, values, groups, gamma, lam)
    return whiten(centered, with_spread(rewards, groups))


def gdpo(
    parts: list[list[float | None]], weights: list[float], groups: list[int], has_own: list[bool]
) -> list[float]:
    """One number a sequence from its K rewards (None: does not apply)."""
    sums = [0.0] * len(groups)
    for k, weight in enumerate(weights):
        for i, group in enumerate(groups):
            peers = [
                part
                for j, part in enumerate(row[k] for row in parts)
                if groups[j] == group and has_own[j] and part is not None
            ]
            part = parts[i][k]
            if has_own[i] and part is not None and len(set(peers)) > 1:
                sums[i] += weight * float((part - np.mean(peers)) / (np.std(peers, ddof=1) + 1e-6))
    scored = [
        s
        for s, row, own in zip(sums, parts, has_own, strict=True)
        if own and any(v is not None for v in row)
    ]
    assert abs(np.mean(scored)) < 1e-12, "the paper's shift by the mean is one by 0"
    mean, std = float(np.mean(scored)), float(np.std(scored, ddof=1))
    return [(s - mean) / (std + 1e-6) if s else 0.0 for s in sums]


def turn_grpo(
    rewards: Sequences,
    values: Sequences,
    groups: list[int],
    gamma: float,
    lam: float,
    turns: list[NDArray[np.int64]] | None = None,
    share: float = 0.5,
) -> Sequences:
    """GRPO's advantage of a sequence and that of each turn, by the group's same turns."""
    if turns is None:
        turns = [np.zeros(len(r), dtype=np.int64) for r in rewards]
    whole = grpo(rewards, values, groups, gamma, lam)
    out = []
    for i, (r, k) in enumerate(zip(rewards, turns, strict=True)):
        advantages = (1 - share) * whole[i]
        for turn in sorted(set(k.tolist())):
            to_go = [
                rewards[j][turns[j] >= turn].sum()
                for j in range(len(groups))
                if groups[j] == groups[i] and turn in turns[j]
            ]
            if len(to_go) > 1:
                own = r[k >= turn].sum()
                standardized = (own - np.mean(to_go)) / (np.std(to_go, ddof=1) + 1e-6)
                advantages = advantages + share * standardized * (k == turn)
        out.append(advantages)
    return out


# `gdpo` has arguments of its own.
ADVANTAGES = {
    "gae": gae,
    "grpo": grpo,
    "turn_grpo": turn_grpo,
    "gdpo": gdpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce++": reinforce_pp,
    "reinforce++_baseline": reinforce_pp_baseline,
}


# Reductions: own-token losses, a list a sequence -> the scalar.


def token_mean(losses: Sequences, constant_length: int) -> float:
    return float(np.concatenate(losses).mean())


def sequence_mean(losses: Sequences, constant_length: int) -> float:
    return float(np.mean([loss.mean() for loss in losses if len(loss)]))


def constant(losses: Sequences, constant_length: int) -> float:
    counted = [loss for loss in losses if len(loss)]
    return float(sum(loss.sum() for loss in counted) / (len(counted) * constant_length))


REDUCTIONS = {"token_mean": token_mean, "sequence_mean": sequence_mean, "constant": constant}
