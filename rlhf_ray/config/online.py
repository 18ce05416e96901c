"""PPO and GRPO: rollouts, rewards, algorithm, and the two jobs' own defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rlhf_ray.config.base import (
    Config,
    GroupConfig,
    JobConfig,
    LearnerConfig,
    NonNegativeFloat,
    NonNegativeInt,
    Placement,
    ReferenceConfig,
    Share,
)
from rlhf_ray.config.data import DataConfig

ROLES = ("policy", "reference", "reward", "value", "rollout")


class EngineConfig(Config):
    """What a vLLM engine is built from; another one takes a new engine.

    Attributes:
        max_num_seqs: Sequences that one engine runs at a time; matters most for throughput.
        max_model_len: Prompt and response tokens together; 0 for the model's own limit.
        kv_cache_gb: Of one engine on CPU; on GPU `gpu_memory_share` decides.
        engine: Further arguments of vLLM's engine by their own names.
    """

    max_num_seqs: PositiveInt = 256
    max_model_len: NonNegativeInt = 0
    kv_cache_gb: PositiveFloat = 1.0
    gpu_memory_share: Share = 0.85
    enforce_eager: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    engine: dict[str, Any] = {}


class RolloutConfig(EngineConfig):
    """The vLLM engines and how they sample.

    Attributes:
        temperature: Also divides the trainer's logits, so that both speak of one distribution.
        stop: Strings that end a response; the tokens that spell them stay in it.
    """

    max_new_tokens: PositiveInt = 256
    temperature: PositiveFloat = 1.0
    stop: list[str] = []
    stop_token_ids: list[NonNegativeInt] = []
    ignore_eos: bool = False

    @property
    def of_engine(self) -> EngineConfig:
        """The part that an engine is built from, without what is asked with each request."""
        return EngineConfig(**{key: getattr(self, key) for key in EngineConfig.model_fields})


class RewardFunctionConfig(Config):
    """A Python function by import path (`package.module:function` or `file.py:function`).

    Called as `function(prompts, completions, **columns, **arguments) -> list[float | None]`.
    """

    path: str
    weight: float = 1.0
    arguments: dict[str, Any] = {}


class RewardModelConfig(Config):
    """Any `AutoModelForSequenceClassification`, with its own tokenizer; off without a `path`.

    Attributes:
        label: Which of the model's logits is the score.
        chat: Put a string prompt into the model's chat template as a user's turn, as training with
            `data.chat` does.
        normalize: `center` subtracts the mean of the scores of reference answers, which training
            stored with the model; `standardize` also divides by their spread.
        max_length: Longer texts are cut at their end; 0 for no limit.
        weight: Factor of the score in the sum with other rewards.
    """

    path: str = ""
    tokenizer: str = ""
    chat_template: str = ""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    label: NonNegativeInt = 0
    chat: bool = False
    max_tokens_per_micro_batch: PositiveInt = 8192
    max_length: NonNegativeInt = 0
    trust_remote_code: bool = False
    normalize: Literal["none", "center", "standardize"] = "none"
    weight: float = 1.0


class RemoteRewardConfig(Config):
    """An HTTP scorer; off while `url` is empty. The token is read from the variable `token_env`."""

    url: str = ""
    token_env: str = ""
    batch_size: PositiveInt = 64
    timeout_s: PositiveFloat = 60.0
    retries: NonNegativeInt = 4
    backoff_s: PositiveFloat = 0.5
    weight: float = 1.0


class ShapingConfig(Config):
    """Changes of the score before it is trained on; 0 and False leave it alone.

    Attributes:
        clip: Scores are clamped to this distance from 0.
        missing_end_penalty: Subtracted where a response was cut off.
        overlong_buffer_tokens: DAPO's soft penalty over the last tokens before `max_new_tokens`
            (arXiv 2503.14476, eq. 13).
        repetition_penalty: Subtracted in full from a response that repeats one n-gram only.
    """

    clip: NonNegativeFloat = 0.0
    whiten: bool = False
    missing_end_penalty: NonNegativeFloat = 0.0
    overlong_buffer_tokens: NonNegativeInt = 0
    overlong_penalty: NonNegativeFloat = 1.0
    repetition_penalty: NonNegativeFloat = 0.0
    repetition_ngram: PositiveInt = 3


class RewardConfig(Config):
    """Where scores come from: functions, a model, a remote scorer; several are summed by weight."""

    functions: list[RewardFunctionConfig] = []
    model: RewardModelConfig = RewardModelConfig()
    remote: RemoteRewardConfig = RemoteRewardConfig()
    shaping: ShapingConfig = ShapingConfig()

    @model_validator(mode="after")
    def _something_scores(self) -> RewardConfig:
        if not (self.functions or self.model.path or self.remote.url):
            raise ValueError("no reward: set functions, model.path or remote.url")
        return self


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
            the run stops) or stop (`error`).
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


class PublicationConfig(Config):
    """Weights to the engines, and the probe that follows.

    Attributes:
        backend: `auto` is `object_store` on CPU, `ipc` where policy and rollout share GPUs, else
            `nccl`.
        bucket_mb: Weights travel in buckets of about this size.
        max_logprob_gap: The run stops where engine and trainer differ by more, in nats, on a probe
            token; 0 takes 1e-3 for float32 and 0.5 for bfloat16.
    """

    backend: Literal["auto", "object_store", "ipc", "nccl"] = "auto"
    bucket_mb: PositiveInt = 256
    probe_sequences: PositiveInt = 4
    max_logprob_gap: NonNegativeFloat = 0.0


class EvalConfig(Config):
    """Evaluation on held-out prompts: before the first, every `every` and after the last step.

    Attributes:
        samples_per_prompt: k; `eval/reward_mean` is the mean over all samples (mean@k),
            `eval/best_of_k` that of each prompt's best, which is pass@k for rewards of 0 and 1.
        temperature: 0 is greedy.
    """

    data: DataConfig = DataConfig()
    every: NonNegativeInt = 0
    num_prompts: PositiveInt = 64
    samples_per_prompt: PositiveInt = 1
    temperature: NonNegativeFloat = 0.0
    table_rows: NonNegativeInt = 4

    @model_validator(mode="after")
    def _samples_can_differ(self) -> EvalConfig:
        if self.samples_per_prompt > 1 and not self.temperature:
            raise ValueError(
                f"temperature must be above 0 for samples_per_prompt {self.samples_per_prompt}: "
                "greedy samples of a prompt are all the same"
            )
        return self


class PlacementConfig(Placement):
    """A group for every role."""

    policy: GroupConfig = GroupConfig()
    reference: GroupConfig = GroupConfig()
    reward: GroupConfig = GroupConfig()
    value: GroupConfig = GroupConfig()
    rollout: GroupConfig = GroupConfig()


class OnlineConfig(JobConfig):
    """PPO, GRPO and their kin: rollouts, scores, advantages, updates."""

    prompts_per_step: PositiveInt = 32
    samples_per_prompt: PositiveInt = 8
    data: DataConfig
    policy: LearnerConfig
    value: LearnerConfig = LearnerConfig()
    reference: ReferenceConfig = ReferenceConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig
    algorithm: AlgorithmConfig
    publication: PublicationConfig = PublicationConfig()
    placement: PlacementConfig = PlacementConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _policy_is_named(self) -> OnlineConfig:
        if not self.policy.model.path:
            raise ValueError("policy.model.path must name a model")
        if not self.data.is_named:
            raise ValueError("data.path must name a data set of prompts")
        return self

    @model_validator(mode="after")
    def _groups_can_differ(self) -> OnlineConfig:
        needs_groups = self.algorithm.advantage in (
            "grpo",
            "dr_grpo",
            "rloo",
            "reinforce++_baseline",
        )
        if self.samples_per_prompt == 1 and (
            needs_groups or self.algorithm.dynamic_sampling.enabled
        ):
            raise ValueError(
                "samples_per_prompt must be at least 2 where a group is compared with itself "
                f"(advantage {self.algorithm.advantage}): one sample alone has advantage 0"
            )
        num_rollouts = self.prompts_per_step * self.samples_per_prompt
        if self.algorithm.minibatches > num_rollouts:
            raise ValueError(
                f"algorithm.minibatches must be at most the step's {num_rollouts} rollouts, "
                f"got {self.algorithm.minibatches}"
            )
        return self

    @model_validator(mode="after")
    def _shaping_fits(self) -> OnlineConfig:
        buffer = self.reward.shaping.overlong_buffer_tokens
        if buffer > self.rollout.max_new_tokens:
            raise ValueError(
                "reward.shaping.overlong_buffer_tokens must be at most rollout.max_new_tokens "
                f"({self.rollout.max_new_tokens}), got {buffer}"
            )
        kl = self.algorithm.kl
        if kl.controller == "adaptive" and not kl.coefficient:
            raise ValueError("algorithm.kl.coefficient must be above 0 to adapt from, got 0")
        return self

    @model_validator(mode="after")
    def _dropout_is_off(self) -> OnlineConfig:
        for role in ("policy", "value"):
            dropout = getattr(self, role).model.lora.dropout
            if dropout:
                raise ValueError(
                    f"{role}.model.lora.dropout must be 0, got {dropout}: a token must get the "
                    "same probability before and in the update"
                )
        return self

    @property
    def engines_sleep(self) -> bool:
        """Whether the engines' GPUs serve another role between rollouts."""
        rollout = self.placement.rollout
        guests = [g for g in self.groups.values() if g.share == "rollout" and g.gpus_per_rank]
        return bool(rollout.gpus_per_rank and (rollout.share or guests))

    @property
    def groups(self) -> dict[str, GroupConfig]:
        """The group of each role that the job uses."""
        placement = self.placement
        groups = {
            "policy": placement.policy,
            "rollout": placement.rollout,
            "reward": placement.reward,
        }
        if self.uses_reference:
            groups["reference"] = placement.reference
        if self.uses_value:
            groups["value"] = placement.value
        return groups

    @property
    def uses_reference(self) -> bool:
        """Whether the KL to a reference model is part of training."""
        return self.algorithm.kl.coefficient > 0

    @property
    def uses_value(self) -> bool:
        """Whether the advantage needs a critic."""
        return self.algorithm.advantage == "gae"


class GrpoConfig(OnlineConfig):
    """GRPO (arXiv 2402.03300): the group's other samples are the baseline."""

    algorithm: AlgorithmConfig = Field(default_factory=lambda: AlgorithmConfig(advantage="grpo"))


class PpoConfig(OnlineConfig):
    """PPO (arXiv 1707.06347) with a critic, generalised advantages and KL in the reward."""

    samples_per_prompt: PositiveInt = 4
    algorithm: AlgorithmConfig = Field(
        default_factory=lambda: AlgorithmConfig(
            advantage="gae",
            whiten_advantages=True,
            minibatches=4,
            kl=KlConfig(coefficient=0.05, estimator="k1", where="reward"),
        )
    )
