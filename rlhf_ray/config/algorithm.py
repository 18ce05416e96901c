"""What turns rewards into updates: advantages, losses, KL, correction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from rlhf_ray.config import algorithm_table as table
from rlhf_ray.config.algorithm_table import (
    AdvantageName,
    CorrectionName,
    KlEstimatorName,
    OldLogprobs,
    PolicyLossName,
    RatioLevel,
    ReductionKind,
    ValueLossName,
)
from rlhf_ray.config.base import Config, NonNegativeFloat, Share


def _clip_low(values: dict[str, Any]) -> float | None:
    return table.POLICY_LOSSES[values["policy_loss"]].clip_low


def _clip_high(values: dict[str, Any]) -> float | None:
    return table.POLICY_LOSSES[values["policy_loss"]].clip_high


def _estimator(values: dict[str, Any]) -> str:
    return "k1" if values["where"] == "reward" else "k3"


class KlConfig(Config):
    """KL to the reference model.

    Attributes:
        coefficient: 0 leaves the reference out: its role is not started.
        where: In the token rewards (Ziegler et al. 2019) or as a term of the loss (GRPO).
        estimator: By default k1 in the reward, k3 in the loss. Others have the gradient of another
            quantity there, or none.
        importance_weight: For k3 in the loss: weigh each token by policy / policy at the step's
            start, which makes the gradient that of KL(policy || reference) (DeepSeek-V3.2,
            arXiv 2512.02556). Without, it is on average that of KL(reference || policy).
        target: For `adaptive`, nats a token; the coefficient moves towards it over `horizon`
            sequences.
    """

    coefficient: NonNegativeFloat = 0.0
    where: Literal["reward", "loss"] = "loss"
    estimator: KlEstimatorName = Field(default_factory=_estimator)
    importance_weight: bool = False
    controller: Literal["fixed", "adaptive"] = "fixed"
    target: PositiveFloat = 0.1
    horizon: PositiveInt = 10_000

    def _faults(self) -> Iterator[str]:
        row = table.KL_ESTIMATORS[self.estimator]
        there = [name for name, row in table.KL_ESTIMATORS.items() if row.where == self.where]
        if self.coefficient and self.where == "loss" != row.where:
            yield (
                f"estimator {self.estimator} has no gradient in the loss, on average: take "
                f"{' or '.join(there)} there, or where: reward"
            )
        if self.coefficient and self.where == "reward" != row.where:
            yield (
                f"estimator {self.estimator} in the reward has another gradient than the KL's: "
                f"take {' or '.join(there)} there, or where: loss"
            )
        if self.importance_weight and not (self.where == "loss" and row.can_be_weighted):
            weighted = [n for n, row in table.KL_ESTIMATORS.items() if row.can_be_weighted]
            yield (
                f"importance_weight is for estimator {' or '.join(weighted)} with where: loss, got "
                f"{self.estimator} with where: {self.where}"
            )


class CorrectionConfig(Config):
    """Correction for engine and trainer giving one token different probabilities.

    They do by kernels and rounding, and by more where generation runs ahead (`max_staleness`).

    Attributes:
        kind: `truncated` clamps weights at `cap`, `mask` leaves tokens out whose weight is not in
            [`low`, `cap`], `none` measures and changes nothing.
        level: Whose a weight is: each `token`'s, or its sequence's, as the `geometric` mean of its
            tokens' or as their product (`sequence`). `auto` takes that of the policy loss:
            `geometric` for `gspo`, else `token`.
        allow_uncorrected: Lets `max_staleness` go with `kind: none`.
    """

    kind: CorrectionName = "truncated"
    level: RatioLevel | Literal["auto"] = "auto"
    cap: Annotated[float, Field(ge=1)] = 2.0
    low: Share = 0.5
    allow_uncorrected: bool = False


class DynamicSamplingConfig(Config):
    """DAPO's dynamic sampling (arXiv 2503.14476): new prompts replace groups without spread.

    Attributes:
        max_rounds: Of generation, the first one included; each asks for what is still missing.
        on_exhausted: After the last round, train the groups there are (`partial`; with none at all
            the step trains nothing) or stop (`error`).
    """

    enabled: bool = False
    max_rounds: PositiveInt = 4
    # The last rounds miss a few groups as a rule, and more so the better the policy gets: a run
    # should not die of its success.
    on_exhausted: Literal["error", "partial"] = "partial"


class AlgorithmConfig(Config):
    """Estimators and losses by name; `rlhf_ray.algorithms` holds one small function each.

    Attributes:
        truncated: What a response that was cut off at its limit counts for. `train`: as any other.
            `mask`: it is compared within its group and enters no loss, nor a mean's count (overlong
            filtering of DAPO, arXiv 2503.14476, section 3.4); a step of nothing else trains
            nothing. `bootstrap` (gae): its return goes on from the critic's value of where it was
            cut, instead of 0 (arXiv 1712.00378).
        turn_share: For `turn_grpo`, how much of an advantage compares single turns; the rest
            compares whole rollouts, as `grpo` does.
        clip_low: How far below 1 the ratio may go; by default the policy loss's own, null for no
            bound.
        clip_high: How far above 1, likewise.
        old_logprobs: Whose log-probabilities stand for the policy at the start of the step.
            `update`: the update's own pass, where it takes one optimiser step and no KL in the
            reward needs them before; the ratio is 1 then. `engine`: those that the engine recorded,
            where the step's own weights sampled. `trainer`: a pass of the policy before the update.
            `auto` is the first of them that is exact; `engine` is where the run stops at a gap of
            more than 1e-3 nats between engine and trainer, as it does by default where both compute
            in float32.
    """

    advantage: AdvantageName
    policy_loss: PolicyLossName = "ppo"
    value_loss: ValueLossName = "clipped"
    reduction: ReductionKind = "token_mean"
    old_logprobs: OldLogprobs | Literal["auto"] = "auto"
    truncated: Literal["train", "mask", "bootstrap"] = "train"
    epochs: PositiveInt = 1
    minibatches: PositiveInt = 1
    clip_low: NonNegativeFloat | None = Field(default_factory=_clip_low)
    clip_high: NonNegativeFloat | None = Field(default_factory=_clip_high)
    dual_clip: NonNegativeFloat = 0.0
    sapo_temperature_positive: PositiveFloat = 1.0
    sapo_temperature_negative: PositiveFloat = 1.05
    value_clip: PositiveFloat = 0.2
    entropy_coefficient: NonNegativeFloat = 0.0
    gamma: Share = 1.0
    lam: Share = 0.95
    turn_share: Share = 0.5
    whiten_advantages: bool = False
    kl: KlConfig = KlConfig()
    correction: CorrectionConfig = CorrectionConfig()
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()

    def _faults(self) -> Iterator[str]:
        if self.dual_clip and self.dual_clip <= 1:
            yield f"dual_clip must be above 1, or 0 for none, got {self.dual_clip}"
        if self.truncated == "bootstrap" and not self.advantage_row.needs_values:
            yield (
                "truncated: bootstrap takes a critic's value, which only advantage gae has, got "
                f"{self.advantage}"
            )
        if self.tells_rewards_apart and self.kl.coefficient and self.kl.where == "reward":
            yield (
                f"kl.where must be loss for advantage {self.advantage}, which standardises each "
                "reward by itself"
            )
        if self.old_logprobs == "update" and not self.updates_know_old:
            yield (
                "old_logprobs update needs epochs 1, minibatches 1 and no KL in the reward, which "
                f"is known before the update: got {self.epochs}, {self.minibatches} and "
                f"kl.coefficient {self.kl.coefficient:g} with kl.where {self.kl.where}"
            )

    @property
    def updates_know_old(self) -> bool:
        """Whether the update's own pass has the policy's log-probabilities at the step's start."""
        in_reward = self.kl.coefficient > 0 and self.kl.where == "reward"
        return self.epochs * self.minibatches == 1 and not in_reward

    @property
    def advantage_row(self) -> table.Advantage:
        """What the estimator of advantages takes."""
        return table.ADVANTAGES[self.advantage]

    @property
    def tells_rewards_apart(self) -> bool:
        """Whether each reward is compared by itself, not their sum."""
        return self.advantage_row.needs_parts

    @property
    def correction_level(self) -> RatioLevel:
        """Whose the weights are that correct for the engine; by default the policy loss's own."""
        if self.correction.level != "auto":
            return self.correction.level
        return table.POLICY_LOSSES[self.policy_loss].level

    def trains(self, finish_reason: Literal["stop", "length"]) -> bool:
        """Whether a response that ended so enters the losses."""
        return not (self.truncated == "mask" and finish_reason == "length")
