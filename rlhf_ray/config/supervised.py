"""SFT, reward models and DPO: rows of a data set, one optimiser step a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from rlhf_ray.config.algorithm_table import (
    PREFERENCE_LOSSES,
    Divergence,
    PreferenceLossName,
    RewardLossName,
    SftLossName,
)
from rlhf_ray.config.base import (
    Config,
    GroupConfig,
    LearnerConfig,
    ModelConfig,
    NonNegativeFloat,
    NonNegativeInt,
    Placement,
    ReferenceConfig,
)
from rlhf_ray.config.data import DataConfig, named, piece_faults, stream_faults
from rlhf_ray.config.run import JobConfig
from rlhf_ray.errors import ConfigError


class SupervisedEvalConfig(Config):
    """Loss and metrics on held-out rows before the first step, every `every` and after the last."""

    data: DataConfig = DataConfig()
    every: NonNegativeInt = 0
    table_rows: NonNegativeInt = 4


class SupervisedConfig(JobConfig):
    """What the jobs on rows of a data set have in common.

    Attributes:
        batch_size: Rows of one optimiser step.
        epochs: Passes over the data, in place of `total_steps`; 0 leaves it to that. The one that
            is given later counts: a command line's `total_steps` in place of a file's `epochs`.
        max_length: Most tokens of a sequence; 0 for the model's context.
    """

    alternatives = (frozenset({"total_steps", "epochs"}),)
    fixed_keys: ClassVar[tuple[str, ...]] = ("batch_size", "max_length")
    takes_pieces: ClassVar[bool] = False

    batch_size: PositiveInt = 32
    epochs: NonNegativeFloat = 0.0
    max_length: NonNegativeInt = 0
    data: DataConfig
    eval: SupervisedEvalConfig = SupervisedEvalConfig()

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("epochs") and "total_steps" in values:
            raise ValueError(
                f"epochs stand in place of total_steps: give one of them, got epochs "
                f"{values['epochs']} and total_steps {values['total_steps']}"
            )
        return values

    @model_serializer(mode="wrap")
    def _with_one_length(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        if self.epochs:
            values.pop("total_steps", None)
        return values

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if not self.data.is_named:
            yield "data.path must name a data set"
        if not self.takes_pieces:
            yield from piece_faults({"data": self.data, "eval.data": self.eval.data})
        yield from stream_faults({"eval.data": self.eval.data})
        if self.data.streaming and self.epochs:
            yield (
                f"epochs need the number of rows, which nobody knows of a stream: give total_steps "
                f"in place of epochs {self.epochs:g}, or leave data.streaming out"
            )
        if not self.learner.model.path:
            yield f"{self.trained_role}.model.path must name a model"

    @property
    def data_sets(self) -> dict[str, DataConfig]:
        """The data sets that the configuration names, by their keys."""
        return named({"data": self.data, "eval.data": self.eval.data})

    @property
    def answers_per_row(self) -> int:
        """Which pass the model together; of a ranking, which may have more, those of one pair."""
        return 1

    @property
    def reads_more_rows(self) -> bool:
        """Whether the trained model also passes rows that it does not learn from."""
        return self.eval.data.is_named

    @property
    def scores_rows_ahead(self) -> bool:
        """Whether a reference scores all rows before training, and leaves."""
        return False

    @property
    def models(self) -> dict[str, ModelConfig]:
        """The model of each role that loads one, as the configuration names it."""
        return {self.trained_role: self.learner.model}

    @property
    def num_ranks(self) -> int:
        """Of the role that is trained."""
        return self.groups[self.trained_role].ranks

    def for_rows(self, num_rows: int) -> Self:
        """The same with `total_steps` resolved from `epochs`, where those are given.

        The last batch is filled up from the next epoch.

        Raises:
            ConfigError: A batch is larger than an epoch.
        """
        if not self.epochs:
            return self
        if self.batch_size > num_rows:
            raise ConfigError(
                f"batch_size must be at most the data's {num_rows} rows where epochs are given, "
                f"got {self.batch_size}"
            )
        steps = math.ceil(self.epochs * num_rows / self.batch_size)
        return self.model_copy(update={"total_steps": steps})


class PolicyPlacementConfig(Placement):
    """Jobs that train a policy alone."""

    policy: GroupConfig = GroupConfig()


class SftEvalConfig(SupervisedEvalConfig):
    """Also what the model writes after the first held-out prompts, greedily."""

    max_new_tokens: PositiveInt = 64


class SftConfig(SupervisedConfig):
    """Supervised fine-tuning: next-token loss on the trained tokens of each example.

    Attributes:
        loss_type: `nll`, or `dft`: each token's loss weighted by its own probability
            (https://arxiv.org/abs/2508.05629).
    """

    job = "sft"
    takes_pieces = True

    loss_type: SftLossName = "nll"
    policy: LearnerConfig
    placement: PolicyPlacementConfig = PolicyPlacementConfig()
    eval: SftEvalConfig = SftEvalConfig()

    @property
    def groups(self) -> dict[str, GroupConfig]:
        """The policy alone."""
        return {"policy": self.placement.policy}


class RmPlacementConfig(Placement):
    """A reward model is trained where it will score."""

    reward: GroupConfig = GroupConfig()


class RmConfig(SupervisedConfig):
    """A reward model: scores of answers such that the better one scores higher.

    Attributes:
        loss_type: `bradley_terry` (https://arxiv.org/abs/2203.02155, eq. 1; over all pairs of a
            ranking), `logexp` (its exponential form, safe for large gaps), or `plackett_luce` over
            whole rankings. None of them compares ties.
        use_margin: Subtract the data's `margin` column from a pair's gap
            (https://arxiv.org/abs/2307.09288, eq. 2).
        center_rewards_coefficient: Weight of the squared sum of scores, which keeps them around 0
            (https://arxiv.org/abs/2312.09244, eq. 2).
        float32_loss: Whether the head and the loss work in float32 whatever the model's dtype.
        router_aux_loss_coef: Weight of a mixture-of-experts model's load-balancing loss.
        reference_data: Answers that shall score 0 on average (https://arxiv.org/abs/2009.01325);
            their mean and spread are stored with the model. Empty: the preferred answers of
            `eval.data`, or else of `data`.
        reference_rows: Most rows of them.
    """

    job = "rm"
    trained_role = "reward"
    model_kind = "classifier"

    loss_type: RewardLossName = "bradley_terry"
    use_margin: bool = True
    center_rewards_coefficient: NonNegativeFloat = 0.0
    float32_loss: bool = True
    router_aux_loss_coef: NonNegativeFloat = 0.0
    reference_data: DataConfig = DataConfig()
    reference_rows: PositiveInt = 512
    reward: LearnerConfig
    placement: RmPlacementConfig = RmPlacementConfig()

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        yield from stream_faults({"reference_data": self.reference_data})

    @property
    def answers_per_row(self) -> int:
        """Two: the model compares."""
        return 2

    @property
    def reads_more_rows(self) -> bool:
        """The reference answers."""
        return True

    @property
    def data_sets(self) -> dict[str, DataConfig]:
        """With the reference answers."""
        return super().data_sets | named({"reference_data": self.reference_data})

    @property
    def groups(self) -> dict[str, GroupConfig]:
        """The reward role alone."""
        return {"reward": self.placement.reward}


class DpoPlacementConfig(Placement):
    """Policy and reference, on groups of their own or sharing."""

    policy: GroupConfig = GroupConfig()
    reference: GroupConfig = GroupConfig()


class DpoConfig(SupervisedConfig):
    """Direct preference optimisation and its kin, under TRL's names.

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
        reference_kind: `role` scores each batch on the reference's group; `precomputed` scores all
            rows once, keeps the answer on disk and frees its memory; `adapter_off` is the policy
            without its LoRA adapter.
    """

    job = "dpo"
    fixed_keys = (*SupervisedConfig.fixed_keys, "loss_type", "beta")

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
    router_aux_loss_coef: NonNegativeFloat = 0.0
    reference_kind: Literal["role", "precomputed", "adapter_off"] = "role"
    policy: LearnerConfig
    reference: ReferenceConfig = ReferenceConfig()
    placement: DpoPlacementConfig = DpoPlacementConfig()

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
    def takes_labels(self) -> bool:
        """Whether a row is one answer with a label, and not a pair."""
        return any(PREFERENCE_LOSSES[name].takes_labels for name in self.loss_type)

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
    def weighted_losses(self) -> dict[str, float]:
        """Weight of each loss by name, `rpo_alpha` included."""
        weights = self.loss_weights or [1.0] * len(self.loss_type)
        losses: dict[str, float] = {}
        for name, weight in [*zip(self.loss_type, weights, strict=True), ("sft", self.rpo_alpha)]:
            if weight:
                losses[name] = losses.get(name, 0.0) + weight
        return losses

    @property
    def uses_reference(self) -> bool:
        """Whether any loss compares with a reference model."""
        return not self.reference_free and any(
            PREFERENCE_LOSSES[name].needs_reference for name in self.weighted_losses
        )

    @property
    def uses_reference_role(self) -> bool:
        """Whether the reference lives on a group of its own."""
        return self.uses_reference and self.reference_kind != "adapter_off"
