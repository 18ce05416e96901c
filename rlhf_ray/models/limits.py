"""What a model's configuration says of its limits, without loading the model."""

from __future__ import annotations

from rlhf_ray.errors import ConfigError

# RoBERTa and its kin number positions from behind the padding token's id.
_POSITIONS_AFTER_PADDING = ("camembert", "roberta", "xlm-roberta", "xlm-roberta-xl")


def context_length(path: str, *, revision: str, trust_remote_code: bool) -> int:
    """Most tokens that the model can take.

    Raises:
        ConfigError: No readable configuration there.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the configuration of model {path!r}: {error}") from error
    num_positions = int(config.get_text_config().max_position_embeddings)
    if config.model_type in _POSITIONS_AFTER_PADDING:
        return num_positions - int(config.pad_token_id) - 1
    return num_positions
