"""What jobs on rows of a data set share, SFT and reward models: one optimiser step a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from pydantic import PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from rlhf_ray.config.algorithm_table import RewardLossName, SftLossName
from rlhf_ray.config.base import NonNegativeFloat, NonNegativeInt
from rlhf_ray.config.data import DataConfig, named, piece_faults, stream_faults
from rlhf_ray.config.evaluation import SftEvalConfig, SupervisedEvalConfig
from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.config.placement import GroupConfig, Placement
from rlhf_ray.config.run import JobConfig
from rlhf_ray.config.sentinels import SentinelsConfig
from rlhf_ray.errors import ConfigError


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
    sentinels: SentinelsConfig = SentinelsConfig()

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
