"""DPO and its kin: preference pairs, or single answers with labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from rlhf_ray.config.algorithm_table import PREFERENCE_LOSSES, Divergence, PreferenceLossName
from rlhf_ray.config.base import Config, NonNegativeFloat
from rlhf_ray.config.learners import LearnerConfig, ReferenceConfig
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.config.placement import GroupConfig, Placement
from rlhf_ray.config.reference import ReferenceKind, is_base_of
from rlhf_ray.config.supervised import SupervisedConfig


class DpoPlacementConfig(Placement):
    """Policy and reference, on groups of their own or sharing."""

    policy: GroupConfig = GroupConfig()
    reference: GroupConfig = GroupConfig()


class PreferenceLossConfig(Config):
    """Losses of DPO and its kin, by name; `rlhf_ray.algorithms` holds one small function each.

    Attributes:
        loss_type: One loss or several, added by `loss_weights`.
        loss_weights: One each; empty for 1 each.
        beta: Strength of the pull to the reference; tau in IPO and CPO-like losses.
        label_smoothing: Share of labels that are taken to be wrong (`sigmoid`, `robust`,
            `exo_pair`, `aot`, `aot_unpaired`, `simpo`).
        f_divergence_type: Divergence in the implicit reward (https://arxiv.org/abs/2309.16240).
        reference_free: Take a uniform reference.
        rpo_alpha: Weight of the chosen answer's own loss beside the others
            (https://arxiv.org/abs/2404.19733); the same as `sft` among the losses.
        discopop_tau: Temperature of DiscoPOP.
        simpo_gamma: SimPO's target margin (https://arxiv.org/abs/2405.14734).
        desirable_weight: KTO's weight of good answers; `undesirable_weight` of bad ones.
    """

    loss_type: list[PreferenceLossName] = ["sigmoid"]
    loss_weights: list[float] = []
    beta: PositiveFloat = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    f_divergence_type: Divergence = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    reference_free: bool = False
    rpo_alpha: NonNegativeFloat = 0.0
    discopop_tau: PositiveFloat = 0.05
    simpo_gamma: NonNegativeFloat = 0.5
    desirable_weight: PositiveFloat = 1.0
    undesirable_weight: PositiveFloat = 1.0

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        names = self.loss_type
        if not names:
            yield "loss_type must name at least one loss"
        if self.loss_weights and len(self.loss_weights) != len(names):
            yield (
                f"loss_weights must have one entry for each of {len(names)} losses, "
                f"got {len(self.loss_weights)}"
            )
        if any(weight < 0 for weight in self.loss_weights):
            yield f"loss_weights must be at least 0, got {self.loss_weights}"
        if not self.weighted_losses:
            yield "loss_weights must leave at least one loss a weight above 0"
        of_labels = [name for name in names if PREFERENCE_LOSSES[name].takes_labels]
        if of_labels and (len(names) > 1 or [*self.weighted_losses] != names):
            yield (
                f"{of_labels[0]} learns from single answers: it cannot be mixed with pair losses, "
                "rpo_alpha among them, and needs a weight above 0"
            )
        rows = {name: PREFERENCE_LOSSES[name] for name in sorted(self.weighted_losses)}
        unscored = [n for n, row in rows.items() if not row.takes_divergence and n != "sft"]
        if self.f_divergence_type != "reverse_kl" and unscored:
            yield (
                f"f_divergence_type must be reverse_kl for {', '.join(unscored)}, which ignore it, "
                f"got {self.f_divergence_type}"
            )
        unsmoothed = [n for n, row in rows.items() if not row.smooths and n != "sft"]
        if self.label_smoothing and unsmoothed:
            yield (
                f"label_smoothing must be 0 for {', '.join(unsmoothed)}, which ignore it, "
                f"got {self.label_smoothing}"
            )
        if "exo_pair" in names and not self.label_smoothing:
            yield "exo_pair needs label_smoothing above 0: its target has the log of it"

    @property
    def takes_labels(self) -> bool:
        """Whether a row is one answer with a label, and not a pair."""
        return any(PREFERENCE_LOSSES[name].takes_labels for name in self.loss_type)

    @property
    def weighted_losses(self) -> dict[str, float]:
        """Weight of each loss by name, `rpo_alpha` included."""
        weights = self.loss_weights or [1.0] * len(self.loss_type)
        losses: dict[str, float] = {}
        for name, weight in [*zip(self.loss_type, weights, strict=True), ("sft", self.rpo_alpha)]:
            if weight:
                losses[name] = losses.get(name, 0.0) + weight
        return losses


class DpoConfig(PreferenceLossConfig, SupervisedConfig):
    """Direct preference optimisation and its kin, under TRL's names.

    Attributes:
        reference_kind: `role` scores each batch on the reference's group, beside the training of
            the one before, and rows that come again not again; `precomputed` scores all rows before
            training and frees its memory; `adapter_off` is the policy without its LoRA adapter,
            on the policy's own ranks. `auto` is `adapter_off` where the policy has an adapter and
            `reference.model` names no other model, else `role`.
    """

    job = "dpo"
    fixed_keys = (*SupervisedConfig.fixed_keys, "loss_type", "beta")

    router_aux_loss_coef: NonNegativeFloat = 0.0
    reference_kind: ReferenceKind | Literal["precomputed"] = "auto"
    policy: LearnerConfig
    reference: ReferenceConfig = ReferenceConfig()
    placement: DpoPlacementConfig = DpoPlacementConfig()

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if self.data.streaming and self.takes_labels:
            yield (
                f"{self.loss_type[0]} takes the answer to another row's prompt from all rows: "
                "leave data.streaming out"
            )
        if self.data.streaming and self.reference_kind == "precomputed":
            yield (
                "reference_kind precomputed scores all rows before it begins: with data.streaming "
                "take role or adapter_off"
            )
        if self.reference_kind == "adapter_off" and not self.policy.model.lora.rank:
            yield (
                "reference_kind adapter_off needs policy.model.lora.rank above 0: without an "
                "adapter the policy is all there is"
            )
        if self.policy.model.lora.dropout:
            yield (
                "policy.model.lora.dropout must be 0: policy and reference must differ by "
                "training alone"
            )

    @property
    def groups(self) -> dict[str, GroupConfig]:
        """The policy, and the reference where it is a role."""
        groups = {"policy": self.placement.policy}
        if self.uses_reference_role:
            groups["reference"] = self.placement.reference
        return groups

    @property
    def answers_per_row(self) -> int:
        """Two of a pair."""
        return 1 if self.takes_labels else 2

    @property
    def scores_rows_ahead(self) -> bool:
        """Where reference_kind is `precomputed`."""
        return self.reference_kind == "precomputed"

    @property
    def models(self) -> dict[str, ModelConfig]:
        """The policy's, and the reference's where it is a role."""
        models = super().models
        return models | ({"reference": self.reference.model} if self.uses_reference_role else {})

    @property
    def uses_reference(self) -> bool:
        """Whether any loss compares with a reference model."""
        return not self.reference_free and any(
            PREFERENCE_LOSSES[name].needs_reference for name in self.weighted_losses
        )

    @property
    def uses_reference_role(self) -> bool:
        """Whether the reference lives on a group of its own."""
        return self.uses_reference and not is_base_of(
            self.policy.model, self.reference.model, self.reference_kind
        )
