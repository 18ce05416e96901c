"""What a job reads before anything starts: tokenizer and rows, checked against the context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf_ray.config.base import DataConfig, ModelConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.supervised import DpoConfig, RmConfig, SftConfig, SupervisedConfig
from rlhf_ray.data.report import Loaded
from rlhf_ray.errors import ConfigError
from rlhf_ray.types import LabelledAnswer, Prompt, Ranking, SftExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class OnlineData:
    """What is read before anything starts.

    Attributes:
        context_tokens: Prompt and response tokens together.
        tokenizer_path: The run's own copy, with padding token and chat template set.
    """

    context_tokens: int
    prompts: list[Prompt]
    eval_prompts: list[Prompt]
    tokenizer_path: str


def load_online_data(config: OnlineConfig) -> OnlineData:
    """Tokenizer and prompts.

    Raises:
        ConfigError: Unreadable, malformed, empty, or too long for the context.
    """
    from rlhf_ray.data.prompts import load_prompts

    tokenizer, tokenizer_path = _tokenizer(config.policy.model, Path(config.run_dir))
    context = config.rollout.max_model_len or _context(config.policy.model)
    room = context - config.rollout.max_new_tokens
    if room < 1:
        raise ConfigError(
            f"rollout.max_new_tokens must leave room for a prompt in the context of {context} "
            f"tokens, got {config.rollout.max_new_tokens}"
        )

    def prompts(data: DataConfig) -> list[Prompt]:
        return load_prompts(data, tokenizer, context_tokens=room, seed=config.seed).rows

    held_out = prompts(config.eval.data) if config.eval.data.is_named else []
    return OnlineData(
        context_tokens=context,
        prompts=prompts(config.data),
        eval_prompts=held_out[: config.eval.num_prompts],
        tokenizer_path=tokenizer_path,
    )


@dataclass(frozen=True, kw_only=True)
class SftData:
    """What is read before anything starts."""

    examples: list[SftExample]
    eval_examples: list[SftExample]
    tokenizer_path: str


def load_sft_data(config: SftConfig) -> SftData:
    """Tokenizer and examples.

    Raises:
        ConfigError: Unreadable, malformed, empty, or too long for the context.
    """
    from rlhf_ray.data.sft import load_sft

    tokenizer, tokenizer_path = _tokenizer(config.policy.model, Path(config.run_dir))
    max_length = config.max_length or _context(config.policy.model)
    load = partial(load_sft, tokenizer=tokenizer, max_length=max_length, seed=config.seed)
    return SftData(
        examples=load(config.data).rows,
        eval_examples=_held_out(config, load),
        tokenizer_path=tokenizer_path,
    )


@dataclass(frozen=True, kw_only=True)
class RmData:
    """What is read before anything starts.

    Attributes:
        reference_answers: One a row; they shall score 0 on average.
    """

    rankings: list[Ranking]
    eval_rankings: list[Ranking]
    reference_answers: list[Ranking]
    tokenizer_path: str


def load_rm_data(config: RmConfig) -> RmData:
    """Tokenizer, rankings and reference answers.

    Raises:
        ConfigError: Unreadable, malformed, empty, or too long for the context.
    """
    from rlhf_ray.data.preferences import best_of, load_answers, load_rankings

    tokenizer, tokenizer_path = _tokenizer(config.reward.model, Path(config.run_dir))
    # An encoder's positions may begin above 0: its tokenizer knows how many are left for tokens.
    context = min(_context(config.reward.model), tokenizer.model_max_length)
    max_length = config.max_length or context
    load = partial(load_rankings, tokenizer=tokenizer, max_length=max_length, seed=config.seed)
    rankings, eval_rankings = load(config.data).rows, _held_out(config, load)
    if config.reference_data.is_named:
        reference_answers = load_answers(
            config.reference_data, tokenizer, max_length=max_length, seed=config.seed
        ).rows
    else:
        reference_answers = [best_of(ranking) for ranking in eval_rankings or rankings]
    return RmData(
        rankings=rankings,
        eval_rankings=eval_rankings,
        reference_answers=reference_answers[: config.reference_rows],
        tokenizer_path=tokenizer_path,
    )


@dataclass(frozen=True, kw_only=True)
class DpoData:
    """What is read before anything starts: pairs, or labelled answers for KTO."""

    rows: list[Ranking] | list[LabelledAnswer]
    eval_rows: list[Ranking] | list[LabelledAnswer]
    tokenizer_path: str


def load_dpo_data(config: DpoConfig) -> DpoData:
    """Tokenizer and rows.

    Raises:
        ConfigError: Unreadable, malformed, empty, or too long for the context.
    """
    from rlhf_ray.data.preferences import load_labelled, load_pairs

    tokenizer, tokenizer_path = _tokenizer(config.policy.model, Path(config.run_dir))
    load: Callable[[DataConfig], Loaded[Any]] = partial(
        load_labelled if "kto" in config.loss_type else load_pairs,
        tokenizer=tokenizer,
        max_length=config.max_length or _context(config.policy.model),
        seed=config.seed,
    )
    return DpoData(
        rows=load(config.data).rows,
        eval_rows=_held_out(config, load),
        tokenizer_path=tokenizer_path,
    )


def _held_out(config: SupervisedConfig, load: Callable[[DataConfig], Loaded[T]]) -> list[T]:
    return load(config.eval.data).rows if config.eval.data.is_named else []


def _tokenizer(model: ModelConfig, run_dir: Path) -> tuple[PreTrainedTokenizerBase, str]:
    """The trained model's tokenizer, and where the run keeps its own copy of it."""
    from rlhf_ray.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(
        model.tokenizer or model.path,
        chat_template=model.chat_template,
        trust_remote_code=model.trust_remote_code,
        revision=model.revision,
    )
    folder = run_dir / "tokenizer"
    tokenizer.save_pretrained(folder)
    return tokenizer, str(folder)


def _context(model: ModelConfig) -> int:
    from rlhf_ray.models.limits import context_length

    return context_length(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
