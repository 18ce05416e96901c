"""PPO, GRPO and sampling: rollouts of prompts and scores; updates, where the policy learns."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.config.online import GrpoConfig, OnlineConfig, PpoConfig
from rlhf_ray.config.rewards import ENVIRONMENT
from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.data.examples.prompts import Prompts
from rlhf_ray.data.examples.tokenization import Tokenization
from rlhf_ray.data.order import TrainedRows, first_of
from rlhf_ray.data.rows.rows import Rows
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.environments.loading import environment_maker
from rlhf_ray.environments.protocol import tool_schemas
from rlhf_ray.errors import ConfigError
from rlhf_ray.jobs.job import Job, Loop
from rlhf_ray.jobs.pool import Pool, WeightedReward
from rlhf_ray.jobs.rows import AnyRows, JobData, JobRows, context_of, end_token_ids, tokenizer_of
from rlhf_ray.jobs.turns import check_turns
from rlhf_ray.loops.checkpoints import Checkpoint
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.sample_files import SampleFiles
from rlhf_ray.loops.sampling import SampleLoop
from rlhf_ray.loops.setup import setup_of
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.metrics.usage import Usage
from rlhf_ray.roles.protocols import Roles, RolloutEngine
from rlhf_ray.rollouts.journal import journal_of
from rlhf_ray.specs import (
    EnvironmentSpec,
    ExperienceSpec,
    PolicySpec,
    ReferenceSpec,
    RewardSpec,
    RolloutSpec,
    Spec,
    ValueSpec,
)
from rlhf_ray.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=OnlineConfig)

# Among which the probe looks for prompts of more than one token.
SEARCHED_PROMPTS = 1024


@dataclass(frozen=True, kw_only=True)
class OnlineData(JobData):
    """Prompts.

    Attributes:
        end_token_ids: Tokens that end a response: the tokenizer's, the model's, the template's, and
            special ones that the configuration names.
        vocabulary: Digest of the tokenizer's.
    """

    prompts: TrainedRows[Prompt]
    eval_prompts: Sequence[Prompt]
    end_token_ids: tuple[int, ...]
    vocabulary: str

    @property
    def trained_rows(self) -> TrainedRows[Prompt]:
        """The prompts."""
        return self.prompts


def rows_of(config: OnlineConfig, tokenizer: PreTrainedTokenizerBase) -> JobRows:
    """The job's data sets of prompts, as the rewards take them."""
    return JobRows(
        config,
        tokenizer,
        kind=lambda key: Prompts,
        most_tokens=partial(_prompt_room, config),
        reward=config.reward,
        adapted=partial(_with_tools, _tools_of(config)),
    )


def _tools_of(config: OnlineConfig) -> tuple[Mapping[str, Any], ...]:
    """What prompts show of the environment's.

    Raises:
        ConfigError: It cannot be made.
    """
    if not config.environment.is_named:
        return ()
    return tuple(tool_schemas(environment_maker(config.environment)()))


def _with_tools(
    tools: tuple[Mapping[str, Any], ...], prompts: Tokenization[Any]
) -> Tokenization[Any]:
    return replace(prompts, tools=tools) if isinstance(prompts, Prompts) else prompts


def _prompt_room(config: OnlineConfig) -> int:
    """The most tokens that a prompt may have.

    Raises:
        ConfigError: None, as responses take the whole context.
    """
    context = _context(config)
    room = context - config.rollout.max_new_tokens
    if room < 1:
        raise ConfigError(
            f"rollout.max_new_tokens must leave room for a prompt in the context of {context} "
            f"tokens, got {config.rollout.max_new_tokens}"
        )
    return room


def _context(config: OnlineConfig) -> int:
    """Tokens of prompt and response together that engines take."""
    return config.rollout.max_model_len or context_of(config.policy.model)


def load(config: OnlineConfig) -> OnlineData:
    """Tokenizer and prompts.

    Raises:
        ConfigError: Unreadable, malformed, empty, too long for the context, not what a reward
            function can score, or another model of the job has another vocabulary.
    """
    from rlhf_ray.data.chat.tokenizer import vocabulary_digest
    from rlhf_ray.models.fit import check_model, check_vocabularies

    policy = config.policy.model
    tokenizer = tokenizer_of(policy)
    rows = rows_of(config, tokenizer)
    others: dict[str, ModelConfig] = {}
    if config.uses_value:
        others["value.model.path"] = config.value.model
    if config.uses_reference_role:
        others["reference.model.path"] = config.reference.model
    check_vocabularies(policy, tokenizer, others)
    check_model("policy.model.path", policy, "causal", is_trained=True)
    held_out = rows.held_out()
    if held_out is not None and len(held_out) > config.eval.num_prompts:
        logger.info(
            "evaluations take the first %d of %d held-out prompts (eval.num_prompts)",
            config.eval.num_prompts,
            len(held_out),
        )
    trained = rows.trained()
    _check_models(config, tokenizer, [trained, *([held_out] if held_out else [])])
    ends = end_token_ids(policy, tokenizer, config.rollout.stop_token_ids)
    eval_prompts = held_out[: config.eval.num_prompts] if held_out else []
    if config.environment.is_named:
        looked_at = (
            trained if isinstance(trained, Rows) else trained.first(SEARCHED_PROMPTS)  # of a stream
        )
        check_turns(config, tokenizer, ends, {"data": looked_at, "eval.data": eval_prompts})
    return OnlineData(
        prompts=trained,
        eval_prompts=eval_prompts,
        tokenizer=tokenizer,
        end_token_ids=ends,
        vocabulary=vocabulary_digest(tokenizer),
    )


def _check_models(
    config: OnlineConfig, tokenizer: PreTrainedTokenizerBase, data: Sequence[AnyRows]
) -> None:
    """Whether every role's model takes what the job gives it."""
    from rlhf_ray.models import fit

    for prompts in data:
        fit.check_tokens("policy.model.path", config.policy.model, tokenizer, prompts)
    longest = max(map(fit.longest_sequence, data)) + config.max_response_tokens
    longest = min(longest, _context(config))  # an environment is told where it ends
    fit.check_room("policy.model.path", config.policy.model, longest)
    if config.uses_value and config.value.model.path:
        fit.check_model("value.model.path", config.value.model, "critic", is_trained=True)
        fit.check_room("value.model.path", config.value.model, longest)
    if config.uses_reference_role and config.reference.model.path:
        fit.check_model("reference.model.path", config.reference.model, "causal", is_trained=False)
        fit.check_room("reference.model.path", config.reference.model, longest)
    if config.reward.model.path:
        fit.check_scorer(config.reward.model, longest)


def specs(config: OnlineConfig, data: OnlineData) -> dict[str, Spec]:
    """What each role of the job is made from; what builds experience needs the loaded rewards."""
    made: dict[str, Spec] = {
        "rollout": RolloutSpec(rollout=config.rollout, end_token_ids=data.end_token_ids),
        "policy": PolicySpec(
            learner=config.policy,
            algorithm=config.algorithm,
            old_logprobs=config.old_logprobs,
            temperature=config.rollout.temperature,
            max_new_tokens=config.rollout.max_new_tokens,
            total_steps=config.policy_updates,
            replay_folder=str(Path(config.run_dir) / "skipped" / "policy"),
            seed=config.seed,
        ),
        "reward": RewardSpec(
            reward=config.reward,
            timeout_s=config.timeouts.reward_s,
            vocabulary=data.vocabulary,
            end_token_ids=data.end_token_ids,
            seed=config.seed,
        ),
    }
    if config.environment.is_named:
        made["environment"] = EnvironmentSpec(
            environment=config.environment,
            end_token_ids=data.end_token_ids,
            chat_template=data.tokenizer.chat_template,
            tools=_tools_of(config),
            max_tokens=_context(config),
        )
    if config.uses_reference_role:
        model = config.reference.model.or_from(config.policy.model)
        made["reference"] = ReferenceSpec(
            reference=config.reference.model_copy(update={"model": model}),
            temperature=config.rollout.temperature,
        )
    if config.uses_value:
        made["value"] = _value_spec(config)
    return made


def _value_spec(config: OnlineConfig) -> ValueSpec:
    model = config.value.model.or_from(config.policy.model)
    learner: LearnerConfig = config.value.model_copy(update={"model": model})
    return ValueSpec(
        learner=learner,
        algorithm=config.algorithm,
        max_new_tokens=config.rollout.max_new_tokens,
        total_steps=config.value_updates,
        replay_folder=str(Path(config.run_dir) / "skipped" / "value"),
        seed=config.seed,
    )


async def load_roles(
    config: OnlineConfig, data: OnlineData, specs: Mapping[str, Spec], pool: Pool
) -> Roles:
    """Load the models, and connect trainer and engines."""
    rollout: RolloutEngine = await pool.load("rollout", specs["rollout"])
    await rollout.sleep(level=2)  # the job begins with a publication
    others = [role for role in specs if role != "rollout"]
    loaded = await side_by_side(pool.load(role, specs[role]) for role in others)
    roles = dict(zip(others, loaded, strict=True))
    await pool.connect(first_of(data.prompts, SEARCHED_PROMPTS))
    reward: WeightedReward = roles["reward"]
    weights = dict(reward.weights)
    if config.environment.is_named:
        weights[ENVIRONMENT] = 1.0
    experience = ExperienceSpec(
        algorithm=config.algorithm,
        old_logprobs=config.old_logprobs,
        shaping=config.reward.shaping,
        max_new_tokens=config.rollout.max_new_tokens,
        reward_weights=weights,
    )
    return Roles(
        rollout=rollout,
        policy=roles["policy"],
        reward=reward,
        experience=await pool.load("experience", experience),
        store=pool.store(),
        reference=roles.get("reference"),
        value=roles.get("value"),
    )


def _loop(
    config: OnlineConfig, data: OnlineData, roles: Roles, log: MetricsLog, usage: Usage
) -> Loop:
    from rlhf_ray.loops.online import OnlineLoop

    return OnlineLoop(
        config,
        roles,
        data.prompts,
        Evaluation(config, data.eval_prompts),
        log,
        usage=usage,
    )


def _sampling(
    config: SampleConfig, data: OnlineData, roles: Roles, log: MetricsLog, usage: Usage
) -> Loop:
    evaluation = Evaluation(config, data.eval_prompts)
    return SampleLoop(config, roles, data.prompts, evaluation, log, usage=usage)


def _check_files(config: SampleConfig, data: OnlineData, checkpoint: Checkpoint | None) -> None:
    """Whether what was sampled before is there, as steps to come add to it."""
    if checkpoint is not None:
        SampleFiles(Path(config.run_dir)).check(checkpoint.state["sizes"])


def _check_journal(config: OnlineConfig, data: OnlineData, checkpoint: Checkpoint | None) -> None:
    """Whether what was decided before is of this run."""
    journal_of(config.run_dir, setup_of(config, data.prompts)).check()


def _job(config: type[C]) -> Job[C, OnlineData, Roles]:
    return Job(
        config=config,
        rows=rows_of,
        load=load,
        specs=specs,
        roles=load_roles,
        loop=_loop,
        check_folder=_check_journal,
        headline=("eval/reward_mean", "rollout/reward_mean"),
    )


PPO, GRPO = _job(PpoConfig), _job(GrpoConfig)
SAMPLE = replace(_job(SampleConfig), loop=_sampling, check_folder=_check_files)
