"""Models that read one another's token ids must mean the same by them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.base import ModelConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.limits import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Embeddings are padded to a multiple of up to so many rows; families differ by far more.
_MOST_PADDING = 1024


def check_vocabularies(
    policy: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    others: Mapping[str, ModelConfig],
) -> None:
    """Refuse models that are shown the policy's token ids and were trained on others.

    Tokens that were added later, such as those of a chat template, may differ. Of the others, by
    the keys that name them, those that start where the policy does are passed over.

    Raises:
        ConfigError: Another vocabulary, one that is too small, or a model that cannot be read.
    """
    for key, model in others.items():
        if not model.path or (model.path, model.revision) == (policy.path, policy.revision):
            continue
        # A tokenizer may know more than its own model, which never writes that.
        num_ids = max(tokenizer.get_vocab().values()) + 1
        num_rows = _num_rows(key, model)
        if num_rows < min(num_ids, _num_rows("policy.model.path", policy)):
            raise _another(key, model, f"has {num_rows} tokens, the policy's tokenizer {num_ids}")
        own = _tokenizer(model)
        if own is not None:
            if differing := _differing(tokenizer, own):
                raise _another(key, model, differing)
        elif num_rows - _num_rows("policy.model.path", policy) > _MOST_PADDING:
            raise _another(key, model, f"has {num_rows} tokens, the policy's tokenizer {num_ids}")


def _another(key: str, model: ModelConfig, how: str) -> ConfigError:
    return ConfigError(
        f"{key} must have the policy's vocabulary, as it is given the policy's token ids: "
        f"{model.path!r} {how}"
    )


def _num_rows(key: str, model: ModelConfig) -> int:
    """Of the embedding, padding included."""
    try:
        config = read_config(model)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
    return int(config.get_text_config().vocab_size)


def _tokenizer(model: ModelConfig) -> Any:
    """The model's own tokenizer; None where it comes without one."""
    from transformers import AutoTokenizer

    path = model.tokenizer or model.path
    # Of a folder without one transformers makes up a tokenizer for some kinds of models.
    if Path(path).is_dir() and not any(
        file for name in ("tokenizer*", "vocab*", "*.model") for file in Path(path).glob(name)
    ):
        return None
    try:
        return AutoTokenizer.from_pretrained(
            path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError):
        return None


def _differing(policys: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str:
    """The first id that both know by different words, in words; empty for none."""
    added = {*policys.get_added_vocab().values(), *other.get_added_vocab().values()}
    words = {index: word for word, index in other.get_vocab().items()}
    for word, index in sorted(policys.get_vocab().items(), key=lambda known: known[1]):
        if index not in added and words.get(index, word) != word:
            return f"has {words[index]!r} as token {index}, the policy {word!r}"
    return ""
