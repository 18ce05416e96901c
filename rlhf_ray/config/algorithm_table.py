"""The names of algorithms, and what is known of each without its formula; imports no torch.

A configuration allows these names, and `rlhf_ray.algorithms` has one function for each: its
registries refuse a function without a row here, and a test finds rows without a function. Rows
stand in the order in which errors and help list them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

# Whose a ratio of probabilities is: each token's, or its sequence's, as the geometric mean over its
# tokens or as their product.
RatioLevel = Literal["token", "geometric", "sequence"]
ReductionKind = Literal["token_mean", "sequence_mean", "constant"]
# Whose log-probabilities are those of the policy at the start of a step.
OldLogprobs = Literal["update", "engine", "trainer"]
# What the policy's ranks may score rollouts with: the policy, and its base, without the adapter.
ScoredModel = Literal["policy", "base"]
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


@dataclass(frozen=True, kw_only=True)
class Advantage:
    """An estimator.

    Attributes:
        needs_values: Whether it needs a critic.
        needs_groups: Whether it compares the samples of a draw.
        needs_parts: Whether it needs each reward alone.
        compares_turns: Whether it tells the turns of a sequence apart, by `turn_share`.
        whitens: Whether whitening is part of it.
        discounts: Whether it looks at `gamma`.
    """

    needs_values: bool = False
    needs_groups: bool = False
    needs_parts: bool = False
    compares_turns: bool = False
    whitens: bool = False
    discounts: bool = False


ADVANTAGES: Mapping[str, Advantage] = {
    "gae": Advantage(needs_values=True, discounts=True),
    "grpo": Advantage(needs_groups=True),
    "turn_grpo": Advantage(needs_groups=True, compares_turns=True),
    "gdpo": Advantage(needs_groups=True, needs_parts=True),
    "dr_grpo": Advantage(needs_groups=True),
    "rloo": Advantage(needs_groups=True),
    "reinforce++": Advantage(whitens=True, discounts=True),
    "reinforce++_baseline": Advantage(needs_groups=True, whitens=True),
}


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """A loss of the policy.

    Attributes:
        level: Whose ratio it takes. A weight that corrects for the engine takes the same.
        clip_low: How far below 1 the ratio may go, where the configuration does not say; None for
            no bound.
        clip_high: How far above 1.
        keys: Of `algorithm`, that it alone or with others looks at.
    """

    level: RatioLevel = "token"
    clip_low: float | None = None
    clip_high: float | None = None
    keys: tuple[str, ...] = ()


_CLIPS = ("clip_low", "clip_high")
POLICY_LOSSES: Mapping[str, PolicyLoss] = {
    # arXiv 1707.06347, section 6.1.
    "ppo": PolicyLoss(clip_low=0.2, clip_high=0.2, keys=(*_CLIPS, "dual_clip")),
    # arXiv 2507.18071, section 5.1.
    "gspo": PolicyLoss(
        level="geometric", clip_low=3e-4, clip_high=4e-4, keys=(*_CLIPS, "dual_clip")
    ),
    # No lower bound and no published upper one (arXiv 2506.13585, section 3.1); a largest ratio of
    # 5 is what TRL recommends after ScaleRL (2510.13786).
    "cispo": PolicyLoss(clip_high=4.0, keys=_CLIPS),
    "sapo": PolicyLoss(keys=("sapo_temperature_positive", "sapo_temperature_negative")),
    "reinforce": PolicyLoss(),
}

VALUE_LOSSES = ("clipped", "mse")


@dataclass(frozen=True, kw_only=True)
class KlEstimator:
    """An estimator of the KL to the reference.

    Attributes:
        where: The place in which it has the gradient of a KL, at least in expectation.
        can_be_weighted: Whether each token may count by its policy's ratio, in the loss.
    """

    where: Literal["reward", "loss"]
    can_be_weighted: bool = False


KL_ESTIMATORS: Mapping[str, KlEstimator] = {
    "k1": KlEstimator(where="reward"),
    "k2": KlEstimator(where="loss"),
    "k3": KlEstimator(where="loss", can_be_weighted=True),
}
_IN_LOSS = {name: row for name, row in KL_ESTIMATORS.items() if row.where == "loss"}
LOSS_TERMS = (
    "entropy",
    *(f"kl_{name}" for name in _IN_LOSS),
    *(f"kl_{name}_weighted" for name, row in _IN_LOSS.items() if row.can_be_weighted),
)

# Of `algorithm.correction`, the keys that each looks at.
CORRECTIONS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "truncated": ("cap",),
    "mask": ("cap", "low"),
}

SFT_LOSSES = ("nll", "dft")
REWARD_LOSSES = ("bradley_terry", "logexp", "plackett_luce")


@dataclass(frozen=True, kw_only=True)
class PreferenceLoss:
    """A loss of answers that were compared, or found good or bad.

    Attributes:
        takes_labels: Whether it learns from single answers, not from pairs.
        needs_reference: Whether it compares with a reference model.
        takes_divergence: Whether it scores answers by `f_divergence_type`.
        smooths: Whether it takes a share of the labels to be wrong, by `label_smoothing`.
        is_coupled: Whether a pair's loss depends on the step's other pairs.
    """

    takes_labels: bool = False
    needs_reference: bool = True
    takes_divergence: bool = False
    smooths: bool = False
    is_coupled: bool = False


PREFERENCE_LOSSES: Mapping[str, PreferenceLoss] = {
    "sigmoid": PreferenceLoss(takes_divergence=True, smooths=True),
    "robust": PreferenceLoss(takes_divergence=True, smooths=True),
    "hinge": PreferenceLoss(takes_divergence=True),
    "ipo": PreferenceLoss(takes_divergence=True),
    "exo_pair": PreferenceLoss(takes_divergence=True, smooths=True),
    "nca_pair": PreferenceLoss(),
    "bco_pair": PreferenceLoss(),
    "sppo_hard": PreferenceLoss(),
    "aot": PreferenceLoss(smooths=True, is_coupled=True),
    "aot_unpaired": PreferenceLoss(smooths=True, is_coupled=True),
    "apo_zero": PreferenceLoss(),
    "apo_down": PreferenceLoss(),
    "discopop": PreferenceLoss(takes_divergence=True),
    "sigmoid_norm": PreferenceLoss(takes_divergence=True),
    "sft": PreferenceLoss(needs_reference=False),
    "simpo": PreferenceLoss(needs_reference=False, smooths=True),
    "orpo": PreferenceLoss(needs_reference=False),
    "kto": PreferenceLoss(takes_labels=True),
}


# What a configuration's keys may hold; a type checker reads no table.
if TYPE_CHECKING:
    AdvantageName: TypeAlias = str
    PolicyLossName: TypeAlias = str
    ValueLossName: TypeAlias = str
    KlEstimatorName: TypeAlias = str
    CorrectionName: TypeAlias = str
    SftLossName: TypeAlias = str
    RewardLossName: TypeAlias = str
    PreferenceLossName: TypeAlias = str
else:
    AdvantageName = Literal[tuple(ADVANTAGES)]
    PolicyLossName = Literal[tuple(POLICY_LOSSES)]
    ValueLossName = Literal[tuple(VALUE_LOSSES)]
    KlEstimatorName = Literal[tuple(KL_ESTIMATORS)]
    CorrectionName = Literal[tuple(CORRECTIONS)]
    SftLossName = Literal[tuple(SFT_LOSSES)]
    RewardLossName = Literal[tuple(REWARD_LOSSES)]
    PreferenceLossName = Literal[tuple(PREFERENCE_LOSSES)]
