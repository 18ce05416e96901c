"""What a model's configuration says of its limits, without loading the model."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from rlhf_ray.config.checks.model_files import is_stretched, usable_positions
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.errors import ConfigError


def read_config(model: ModelConfig) -> Any:
    """A model's configuration, of a folder or a hub's name.

    Raises:
        ConfigError: None is there, it has a mistake, or this transformers does not know the model.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).partition("\n\n")[0].split())
        raise ConfigError(
            f"cannot read the configuration of model {model.path!r}: {reason} (transformers "
            f"{importlib.metadata.version('transformers')})"
        ) from error


def context_length(model: ModelConfig) -> int:
    """Most tokens that the model can take.

    Raises:
        ConfigError: No readable configuration there, or it names no limit.
    """
    length = positions_of(read_config(model))
    if length is None:
        raise ConfigError(
            f"the configuration of model {model.path!r} names no longest sequence: set "
            "rollout.max_model_len, or max_length in sft, rm and dpo"
        )
    return length


def most_tokens(config: Any) -> int | None:
    """Tokens beyond which a model fails or says nothing; None for no limit, or one it stretches."""
    stretched = is_stretched(config.get_text_config().to_dict())
    return None if stretched else positions_of(config)


def positions_of(config: Any) -> int | None:
    """The same of a configuration that transformers has read; None where it names no limit."""
    text = config.get_text_config()
    num_positions = getattr(text, "max_position_embeddings", None) or getattr(
        text, "max_seq_len", None
    )
    padding = getattr(config, "pad_token_id", None)
    return usable_positions(num_positions, config.model_type, padding)
