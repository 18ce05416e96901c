"""What a job reads before anything starts: tokenizer and rows, checked against the context."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_ray.config.base import DataConfig, ModelConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.types import Prompt, SftExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        return load_prompts(data, tokenizer, context_tokens=room)

    return OnlineData(
        context_tokens=context,
        prompts=prompts(config.data),
        eval_prompts=prompts(config.eval.data)[: config.eval.num_prompts]
        if config.eval.data.path
        else [],
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
    examples = load_sft(config.data, tokenizer, max_length=max_length)
    held_out = (
        load_sft(config.eval.data, tokenizer, max_length=max_length)
        if config.eval.data.path
        else []
    )
    return SftData(examples=examples, eval_examples=held_out, tokenizer_path=tokenizer_path)


def _tokenizer(model: ModelConfig, run_dir: Path) -> tuple[PreTrainedTokenizerBase, str]:
    """The policy's tokenizer, and where the run keeps its own copy of it."""
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
