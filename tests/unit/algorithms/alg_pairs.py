"""Random pairs, rankings and labelled answers."""

from dataclasses import fields, replace

import alg_oracles_supervised as oracles
import numpy as np
import torch
from torch import Tensor

from rlhf_ray.algorithms.preference_losses import LabelledInputs, PairInputs
from rlhf_ray.algorithms.supervised_losses import RankingInputs
from rlhf_ray.config.dpo import PreferenceLossConfig

PARAMS = PreferenceLossConfig(
    beta=oracles.BETA,
    label_smoothing=oracles.EPSILON,
    f_divergence_type="reverse_kl",
    f_alpha_divergence_coef=oracles.ALPHA,
    discopop_tau=oracles.DISCOPOP_TAU,
    simpo_gamma=oracles.SIMPO_GAMMA,
    desirable_weight=oracles.DESIRABLE_WEIGHT,
    undesirable_weight=oracles.UNDESIRABLE_WEIGHT,
)
PAIR_TENSORS = [field.name for field in fields(PairInputs) if field.name.endswith("_B")]
ORACLE_NAMES = [name.replace("_logps_B", "").replace("_lens_B", "_len") for name in PAIR_TENSORS]
TRAINED = ["chosen_logps_B", "rejected_logps_B"]


def make_pairs(num_pairs: int, seed: int) -> PairInputs:
    """Answers of 1 to 9 tokens.

    Policy and reference differ about as much as answers do, so that AOT has something to sort.
    """
    rng = np.random.default_rng(seed)
    sides: dict[str, Tensor] = {}
    for side in ("chosen", "rejected"):
        lens = rng.integers(1, 10, num_pairs)
        reference = -rng.uniform(3.0, 6.0, num_pairs)
        logps = -np.abs(reference + rng.normal(0.0, 1.0, num_pairs)) - 0.05
        sides[f"{side}_logps_B"] = torch.tensor(logps)
        sides[f"reference_{side}_logps_B"] = torch.tensor(reference)
        sides[f"{side}_lens_B"] = torch.tensor(lens)
    return PairInputs(
        **sides,
        num_pairs=num_pairs,
        num_chosen_tokens=int(sides["chosen_lens_B"].sum()),
    )


def pick(inputs: PairInputs, rows: list[int]) -> PairInputs:
    """Those pairs, as a micro-batch of the same step."""
    return replace(inputs, **{name: getattr(inputs, name)[rows] for name in PAIR_TENSORS})


def with_leaves(inputs: PairInputs) -> PairInputs:
    """The same pairs with fresh leaves that collect gradients."""
    leaves = {name: getattr(inputs, name).clone().requires_grad_() for name in TRAINED}
    return replace(inputs, **leaves)


def gradient_of(leaf: Tensor) -> Tensor:
    """Zeros where the loss does not depend on the leaf."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def as_oracle_pairs(inputs: PairInputs) -> list[oracles.Pair]:
    columns = [getattr(inputs, name).tolist() for name in PAIR_TENSORS]
    return [
        oracles.Pair(**dict(zip(ORACLE_NAMES, row, strict=True)))
        for row in zip(*columns, strict=True)
    ]


def make_labelled(num_answers: int, seed: int) -> LabelledInputs:
    rng = np.random.default_rng(seed)
    reference = -rng.gamma(5.0, 2.0, num_answers)
    return LabelledInputs(
        logps_B=torch.tensor(reference + rng.normal(0.0, 1.5, num_answers)),
        reference_logps_B=torch.tensor(reference),
        mismatch_kl=torch.tensor(rng.exponential(1.0), dtype=torch.float64),
        desirable_B=torch.tensor([*(rng.random(num_answers - 2) < 0.5), True, False]),
    )


def make_rankings(
    lens: list[int], seed: int, fill: float = 0.0, *, ties: bool = False
) -> RankingInputs:
    """Rankings of `lens` answers with `fill` in the slots behind them; with `ties` some are."""
    rng = np.random.default_rng(seed)
    mask_BK = torch.arange(max(lens)) < torch.tensor(lens)[:, None]
    scores_BK = torch.tensor(rng.normal(0.0, 2.0, mask_BK.shape))
    is_next_BK = torch.tensor(rng.integers(0, 2, mask_BK.shape)) if ties else mask_BK.long()
    is_next_BK[:, 0] = 0
    return RankingInputs(
        scores_BK=torch.where(mask_BK, scores_BK, torch.full_like(scores_BK, fill)),
        mask_BK=mask_BK,
        tiers_BK=is_next_BK.cumsum(1),
        margins_B=torch.tensor(rng.exponential(1.0, len(lens))),
    )
