"""What a configuration says of all rows of its job: their tokenizer, and how long they may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_ray.config.base import ModelConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.supervised import RmConfig, SupervisedConfig
from rlhf_ray.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenizer_of(model: ModelConfig) -> PreTrainedTokenizerBase:
    """A trained model's tokenizer.

    Raises:
        ConfigError: See `load_tokenizer`.
    """
    from rlhf_ray.data.chat.tokenizer import load_tokenizer

    return load_tokenizer(
        model.tokenizer or model.path,
        chat_template=model.chat_template,
        trust_remote_code=model.trust_remote_code,
        revision=model.revision,
    )


def context_of(config: OnlineConfig) -> int:
    """Tokens of a prompt and its response together."""
    return config.rollout.max_model_len or _context(config.policy.model)


def prompt_room(config: OnlineConfig) -> int:
    """The most tokens that a prompt may have.

    Raises:
        ConfigError: None, as responses take the whole context.
    """
    context = context_of(config)
    room = context - config.rollout.max_new_tokens
    if room < 1:
        raise ConfigError(
            f"rollout.max_new_tokens must leave room for a prompt in the context of {context} "
            f"tokens, got {config.rollout.max_new_tokens}"
        )
    return room


def most_tokens(config: SupervisedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens of a sequence."""
    if config.max_length:
        return config.max_length
    context = _context(config.learner.model)
    if isinstance(config, RmConfig):
        # An encoder's positions may begin above 0: its tokenizer knows how many are left.
        return min(context, int(tokenizer.model_max_length))
    return context


def _context(model: ModelConfig) -> int:
    from rlhf_ray.models.limits import context_length

    return context_length(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
