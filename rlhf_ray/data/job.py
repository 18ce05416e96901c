"""What a job reads before anything starts: tokenizer and rows, checked against the context."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from rlhf_ray.config.base import ForwardConfig, ModelConfig
from rlhf_ray.config.data import DataConfig
from rlhf_ray.config.model_kind import Kind
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.supervised import DpoConfig, RmConfig, SftConfig, SupervisedConfig
from rlhf_ray.data.feed import TrainedRows, first_of
from rlhf_ray.data.job_limits import context_of, most_tokens, prompt_room, tokenizer_of
from rlhf_ray.data.loading import load
from rlhf_ray.data.rows import Rows
from rlhf_ray.data.stream_sources import open_stream
from rlhf_ray.data.streaming import RowStream
from rlhf_ray.data.tokenization import Tokenization
from rlhf_ray.disk import room_for
from rlhf_ray.types import LabelledAnswer, Prompt, Ranking, SftExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_ROWS_WITH_ALL_COLUMNS = 100  # of a stream, whose other rows are not looked at

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
    from rlhf_ray.data.prompts import Prompts, load_prompts
    from rlhf_ray.data.tokenizer import vocabulary_digest
    from rlhf_ray.models.fit import check_model
    from rlhf_ray.rewards.checks import checking_functions, prompt_faults, usable_prompts
    from rlhf_ray.rewards.columns import check_columns

    functions = checking_functions(config.reward)
    tokenizer, tokenizer_path = _tokenizer(config.policy.model, Path(config.run_dir))
    others: dict[str, ForwardConfig] = {}
    if config.uses_value:
        others["value"] = config.value
    if config.uses_reference:
        others["reference"] = config.reference
    _check_vocabularies(config.policy.model, tokenizer, others)
    check_model("policy.model.path", config.policy.model, "causal", is_trained=True)
    context, room = context_of(config), prompt_room(config)

    def prompts(key: str, data: DataConfig) -> Rows[Prompt]:
        rows = load_prompts(data, tokenizer, context_tokens=room, seed=config.seed).rows
        check_columns(config.reward, rows, key=key)
        return usable_prompts(rows, functions, key=key, skip=data.on_bad_row == "skip")

    held_out = prompts("eval.data", config.eval.data) if config.eval.data.is_named else None
    if held_out is not None and len(held_out) > config.eval.num_prompts:
        logger.info(
            "evaluations take the first %d of %d held-out prompts (eval.num_prompts)",
            config.eval.num_prompts,
            len(held_out),
        )
    trained: Rows[Prompt] | RowStream[Prompt]
    if config.data.streaming:
        trained = open_stream(
            config.data,
            Prompts.of(config.data, tokenizer, max_length=room),
            seed=config.seed,
            check=partial(prompt_faults, functions=functions) if functions else None,
        )
        check_columns(config.reward, first_of(trained, _ROWS_WITH_ALL_COLUMNS), key="data")
    else:
        trained = prompts("data", config.data)
    _check_online_models(config, tokenizer, [trained, *([held_out] if held_out else [])])
    return OnlineData(
        context_tokens=context,
        prompts=trained,
        eval_prompts=held_out[: config.eval.num_prompts] if held_out else [],
        tokenizer=tokenizer,
        tokenizer_path=tokenizer_path,
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
    from rlhf_ray.data.sft import Examples

    settings, tokenizer_path = _tokenization(config)
    data = _load(config, Examples, settings, tokenizer_path)
    return SftData(
        rows=data.rows,
        eval_rows=data.eval_rows,
        tokenizer=data.tokenizer,
        tokenizer_path=tokenizer_path,
        end_token_ids=_end_token_ids(config.policy.model, settings["tokenizer"]),
    )


def load_rm_data(config: RmConfig) -> RmData:
    """Tokenizer, rankings and reference answers.

    Raises:
        ConfigError: As in `load_sft_data`.
    """
    from rlhf_ray.data.preferences import Rankings, best_of, load_answers

    settings, tokenizer_path = _tokenization(config)
    data = _load(config, Rankings, settings, tokenizer_path)
    num_answers = config.reference_rows
    if config.reference_data.is_named:
        answers = list(load_answers(config.reference_data, **settings).rows[:num_answers])
    else:
        answers = [
            best_of(ranking) for ranking in first_of(data.eval_rows or data.rows, num_answers)
        ]
    return RmData(
        rows=data.rows,
        eval_rows=data.eval_rows,
        reference_answers=answers,
        tokenizer=data.tokenizer,
        tokenizer_path=tokenizer_path,
    )


def load_dpo_data(config: DpoConfig) -> SupervisedData[Ranking] | SupervisedData[LabelledAnswer]:
    """Tokenizer and pairs, or labelled answers for KTO.

    Raises:
        ConfigError: As in `load_online_data`.
    """
    from rlhf_ray.data.preferences import LabelledAnswers, Pairs, check_labels

    settings, tokenizer_path = _tokenization(config)
    others = {"reference": config.reference} if config.uses_reference_role else {}
    _check_vocabularies(config.policy.model, settings["tokenizer"], others)
    if "kto" in config.loss_type:
        labelled = _load(config, LabelledAnswers, settings, tokenizer_path)
        if not isinstance(labelled.rows, RowStream):
            check_labels(labelled.rows)
        return labelled
    return _load(config, Pairs, settings, tokenizer_path)


def _load(
    config: SupervisedConfig,
    kind: type[Tokenization[T]],
    settings: Mapping[str, Any],
    tokenizer_path: str,
) -> SupervisedData[T]:
    trained, held_out = (
        kind.of(data, settings["tokenizer"], max_length=settings["max_length"])
        for data in (config.data, config.eval.data)
    )
    rows: Rows[T] | RowStream[T]
    if config.data.streaming:
        rows = open_stream(config.data, trained, seed=config.seed)
    else:
        rows = load(config.data, trained, seed=config.seed).rows
    eval_rows = None
    if config.eval.data.is_named:
        eval_rows = load(config.eval.data, held_out, seed=config.seed).rows
    _check_supervised_models(
        config, settings["tokenizer"], [rows, *([eval_rows] if eval_rows else [])]
    )
    return SupervisedData(
        rows=rows,
        eval_rows=eval_rows or [],
        tokenizer=settings["tokenizer"],
        tokenizer_path=tokenizer_path,
    )


def _tokenization(config: SupervisedConfig) -> tuple[dict[str, Any], str]:
    """What every loader takes beside the data's own settings, and where the tokenizer is."""
    from rlhf_ray.models.fit import check_model

    model = config.learner.model
    kind: Kind = "classifier" if isinstance(config, RmConfig) else "causal"
    check_model(f"{config.trained_role}.model.path", model, kind, is_trained=True)
    tokenizer, tokenizer_path = _tokenizer(model, Path(config.run_dir))
    max_length = most_tokens(config, tokenizer)
    return {"tokenizer": tokenizer, "max_length": max_length, "seed": config.seed}, tokenizer_path


def _tokenizer(model: ModelConfig, run_dir: Path) -> tuple[PreTrainedTokenizerBase, str]:
    """The trained model's tokenizer, and where the run will keep its own copy of it."""
    return tokenizer_of(model), str(run_dir / "tokenizer")


def _end_token_ids(
    model: ModelConfig, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Sequence[int] = ()
) -> tuple[int, ...]:
    """What ends a response; the log says so."""
    from rlhf_ray.data.turn_end import end_tokens
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
