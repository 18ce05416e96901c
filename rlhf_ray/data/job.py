"""What a job reads before anything starts: tokenizer and rows, checked against the context."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from rlhf_ray.config.base import ForwardConfig, ModelConfig, RunConfig
from rlhf_ray.config.checks.model_kind import Kind
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.supervised import DpoConfig, RmConfig, SftConfig, SupervisedConfig
from rlhf_ray.data.examples.preferences import best_of
from rlhf_ray.data.job_limits import context_of, tokenizer_of
from rlhf_ray.data.job_rows import JobRows
from rlhf_ray.data.order import TrainedRows, first_of
from rlhf_ray.data.rows.rows import Rows
from rlhf_ray.data.rows.streaming import RowStream
from rlhf_ray.disk import room_for
from rlhf_ray.types import LabelledAnswer, Prompt, Ranking, SftExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

T = TypeVar("T")
AnyRows: TypeAlias = Rows[Any] | RowStream[Any]


@dataclass(frozen=True, kw_only=True)
class JobData:
    """What is read before anything starts.

    Attributes:
        tokenizer: Of the model that is trained.
        tokenizer_path: Where `keep_tokenizer` leaves the run's own copy of it.
    """

    tokenizer: PreTrainedTokenizerBase
    tokenizer_path: str

    @property
    def trained_rows(self) -> TrainedRows[Any]:
        """What the job trains on."""
        raise NotImplementedError

    def keep_tokenizer(self) -> None:
        """Write the run's copy, with padding token and chat template set."""
        with room_for("the tokenizer", Path(self.tokenizer_path)):
            self.tokenizer.save_pretrained(self.tokenizer_path)


@dataclass(frozen=True, kw_only=True)
class OnlineData(JobData):
    """Prompts.

    Attributes:
        context_tokens: Prompt and response tokens together.
        end_token_ids: Tokens that end a response: the tokenizer's, the model's, the template's, and
            special ones that the configuration names.
        vocabulary: Digest of the tokenizer's.
    """

    context_tokens: int
    prompts: TrainedRows[Prompt]
    eval_prompts: Sequence[Prompt]
    end_token_ids: tuple[int, ...]
    vocabulary: str

    @property
    def trained_rows(self) -> TrainedRows[Prompt]:
        """The prompts."""
        return self.prompts


def load_online_data(config: OnlineConfig) -> OnlineData:
    """Tokenizer and prompts.

    Raises:
        ConfigError: Unreadable, malformed, empty, too long for the context, not what a reward
            function can score, or another model of the job has another vocabulary.
    """
    from rlhf_ray.data.chat.tokenizer import vocabulary_digest
    from rlhf_ray.models.fit import check_model

    tokenizer = tokenizer_of(config.policy.model)
    rows = JobRows(config, tokenizer)
    others: dict[str, ForwardConfig] = {}
    if config.uses_value:
        others["value"] = config.value
    if config.uses_reference:
        others["reference"] = config.reference
    _check_vocabularies(config.policy.model, tokenizer, others)
    check_model("policy.model.path", config.policy.model, "causal", is_trained=True)
    held_out = rows.load("eval.data").rows if config.eval.data.is_named else None
    if held_out is not None and len(held_out) > config.eval.num_prompts:
        logger.info(
            "evaluations take the first %d of %d held-out prompts (eval.num_prompts)",
            config.eval.num_prompts,
            len(held_out),
        )
    trained = rows.rows("data")
    _check_online_models(config, tokenizer, [trained, *([held_out] if held_out else [])])
    return OnlineData(
        context_tokens=context_of(config),
        prompts=trained,
        eval_prompts=held_out[: config.eval.num_prompts] if held_out else [],
        tokenizer=tokenizer,
        tokenizer_path=_tokenizer_path(config),
        end_token_ids=_end_token_ids(config.policy.model, tokenizer, config.rollout.stop_token_ids),
        vocabulary=vocabulary_digest(tokenizer),
    )


@dataclass(frozen=True, kw_only=True)
class SupervisedData(JobData, Generic[T]):
    """Rows.

    Attributes:
        rows: To train on.
        eval_rows: Held out.
    """

    rows: TrainedRows[T]
    eval_rows: Sequence[T]

    @property
    def trained_rows(self) -> TrainedRows[T]:
        """The rows."""
        return self.rows


@dataclass(frozen=True, kw_only=True)
class SftData(SupervisedData[SftExample]):
    """The same, and the tokens that end what the model writes for an evaluation's table."""

    end_token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RmData(SupervisedData[Ranking]):
    """The same, and answers that shall score 0 on average, one a row."""

    reference_answers: Sequence[Ranking]


def load_sft_data(config: SftConfig) -> SftData:
    """Tokenizer and examples.

    Raises:
        ConfigError: Unreadable, malformed, empty, or too long for the context.
    """
    data = _load(config, _job_rows(config))
    return SftData(**vars(data), end_token_ids=_end_token_ids(config.policy.model, data.tokenizer))


def load_rm_data(config: RmConfig) -> RmData:
    """Tokenizer, rankings and reference answers.

    Raises:
        ConfigError: As in `load_sft_data`.
    """
    rows = _job_rows(config)
    data = _load(config, rows)
    num_answers = config.reference_rows
    if config.reference_data.is_named:
        answers = list(rows.load("reference_data").rows[:num_answers])
    else:
        answers = [
            best_of(ranking) for ranking in first_of(data.eval_rows or data.rows, num_answers)
        ]
    return RmData(**vars(data), reference_answers=answers)


def load_dpo_data(config: DpoConfig) -> SupervisedData[Ranking] | SupervisedData[LabelledAnswer]:
    """Tokenizer and pairs, or labelled answers for KTO.

    Raises:
        ConfigError: As in `load_online_data`.
    """
    rows = _job_rows(config)
    others = {"reference": config.reference} if config.uses_reference_role else {}
    _check_vocabularies(config.policy.model, rows.tokenizer, others)
    return _load(config, rows)


def _job_rows(config: SupervisedConfig) -> JobRows:
    from rlhf_ray.models.fit import check_model

    model = config.learner.model
    kind: Kind = "classifier" if isinstance(config, RmConfig) else "causal"
    check_model(f"{config.trained_role}.model.path", model, kind, is_trained=True)
    return JobRows(config, tokenizer_of(model))


def _load(config: SupervisedConfig, rows: JobRows) -> SupervisedData[Any]:
    trained = rows.rows("data")
    held_out = rows.load("eval.data").rows if config.eval.data.is_named else None
    _check_supervised_models(config, rows.tokenizer, [trained, *([held_out] if held_out else [])])
    return SupervisedData(
        rows=trained,
        eval_rows=held_out or [],
        tokenizer=rows.tokenizer,
        tokenizer_path=_tokenizer_path(config),
    )


def _tokenizer_path(config: RunConfig) -> str:
    """Where the run will keep its own copy of the tokenizer."""
    return str(Path(config.run_dir) / "tokenizer")


def _end_token_ids(
    model: ModelConfig, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Sequence[int] = ()
) -> tuple[int, ...]:
    """What ends a response; the log says so."""
    from rlhf_ray.data.chat.turn_end import end_tokens
    from rlhf_ray.models.identity import generation_end_ids

    generation_ids = generation_end_ids(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    ends = end_tokens(tokenizer, generation_ids, stop_token_ids)
    logger.info("responses end at %s", ends.words)
    return ends.ids


def _check_online_models(
    config: OnlineConfig, tokenizer: PreTrainedTokenizerBase, data: Sequence[AnyRows]
) -> None:
    """Whether every role's model takes what the job gives it."""
    from rlhf_ray.models import fit

    for prompts in data:
        fit.check_tokens("policy.model.path", config.policy.model, tokenizer, prompts)
    longest = max(map(fit.longest_sequence, data)) + config.rollout.max_new_tokens
    fit.check_room("policy.model.path", config.policy.model, longest)
    if config.uses_value and config.value.model.path:
        fit.check_model("value.model.path", config.value.model, "critic", is_trained=True)
        fit.check_room("value.model.path", config.value.model, longest)
    if config.uses_reference and config.reference.model.path:
        fit.check_model("reference.model.path", config.reference.model, "causal", is_trained=False)
        fit.check_room("reference.model.path", config.reference.model, longest)
    if config.reward.model.path:
        fit.check_scorer(config.reward.model, longest)


def _check_supervised_models(
    config: SupervisedConfig, tokenizer: PreTrainedTokenizerBase, data: Sequence[AnyRows]
) -> None:
    from rlhf_ray.models import fit

    key, model = f"{config.trained_role}.model.path", config.learner.model
    longest = max(map(fit.longest_sequence, data))
    for rows in data:
        fit.check_tokens(key, model, tokenizer, rows)
    fit.check_room(key, model, longest)
    if isinstance(config, DpoConfig) and config.uses_reference_role and config.reference.model.path:
        reference = config.reference.model
        fit.check_model("reference.model.path", reference, "causal", is_trained=False)
        fit.check_room("reference.model.path", reference, longest)


def _check_vocabularies(
    policy: ModelConfig, tokenizer: PreTrainedTokenizerBase, others: Mapping[str, ForwardConfig]
) -> None:
    from rlhf_ray.models.vocabulary import check_vocabularies

    named = {f"{role}.model.path": config.model for role, config in others.items()}
    check_vocabularies(policy, tokenizer, named)
