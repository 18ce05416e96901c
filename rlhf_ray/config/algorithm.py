"""What turns rewards into updates: advantages, losses, KL, correction."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rlhf_ray.config.base import (
    Config,
    NonNegativeFloat,
    Share,
)

ROLES = ("policy", "reference", "reward", "value", "rollout")


class KlConfig(Config):
    """KL to the reference model.

    Attributes:
        coefficient: 0 leaves the reference out: its role is not started.
        where: In the token rewards (Ziegler et al. 2019) or as a term of the loss (GRPO).
        target: For `adaptive`, nats a token; the coefficient moves towards it over `horizon`
            sequences.
    """

    coefficient: NonNegativeFloat = 0.0
    estimator: Literal["k1", "k2", "k3"] = "k3"
    where: Literal["reward", "loss"] = "loss"
    controller: Literal["fixed", "adaptive"] = "fixed"
    target: PositiveFloat = 0.1
    horizon: PositiveInt = 10_000

    @model_validator(mode="after")
    def _has_a_gradient(self) -> KlConfig:
        if self.coefficient and (self.where, self.estimator) == ("loss", "k1"):
            raise ValueError(
                "estimator k1 has no gradient in the loss, on average: take k2 or k3 there, or "
                "where: reward"
            )
        return self


class CorrectionConfig(Config):
    """Correction for engine and trainer giving one token different probabilities."""

    kind: Literal["none", "truncated", "mask"] = "truncated"
    cap: Annotated[float, Field(ge=1)] = 2.0
    low: Share = 0.5


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
    """Estimators and losses by name; `rlhf_ray.algorithms` holds one small function each."""

    advantage: Literal["gae", "grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline"]
    policy_loss: Literal["ppo", "gspo", "cispo", "sapo", "reinforce"] = "ppo"
    value_loss: Literal["clipped", "mse"] = "clipped"
    reduction: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    epochs: PositiveInt = 1
    minibatches: PositiveInt = 1
    clip_low: NonNegativeFloat = 0.2
    clip_high: NonNegativeFloat = 0.2
    dual_clip: NonNegativeFloat = 0.0
    sapo_temperature_positive: PositiveFloat = 1.0
    sapo_temperature_negative: PositiveFloat = 1.05
    value_clip: PositiveFloat = 0.2
    entropy_coefficient: NonNegativeFloat = 0.0
    gamma: Share = 1.0
    lam: Share = 0.95
    whiten_advantages: bool = False
    kl: KlConfig = KlConfig()
    correction: CorrectionConfig = CorrectionConfig()
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()

    @model_validator(mode="after")
    def _dual_clip_is_above_one(self) -> AlgorithmConfig:
        if self.dual_clip and self.dual_clip <= 1:
            raise ValueError(f"dual_clip must be above 1, or 0 for none, got {self.dual_clip}")
        return self
