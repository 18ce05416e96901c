"""What a model is apart from its weights: architecture, end tokens, tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rlhf_ray.errors import ConfigError

# Of a configuration: they change whenever a model is loaded and saved, its function does not.
_VOLATILE = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "pad_token_id",
    "_attn_implementation", "quantization_config",
}  # fmt: skip


def engine_identity(
    path: str, tokenizer_path: str, *, revision: str, trust_remote_code: bool
) -> str:
    """Equal for two models that differ by their weights alone.

    Compared is what transformers makes of the files, not the files: a saved copy has other bytes.

    Raises:
        ConfigError: No readable model or tokenizer there.
    """
    from transformers import AutoConfig, AutoTokenizer

    keywords: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(path, **keywords)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_path, **keywords)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read model and tokenizer of {path!r}: {error}") from error
    architecture = {k: v for k, v in config.to_dict().items() if k not in _VOLATILE}
    # vLLM ends responses by the model's end tokens without being asked.
    parts = [architecture, _end_tokens(path, config, revision), _words(tokenizer)]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def generation_end_ids(path: str, *, revision: str, trust_remote_code: bool) -> tuple[int, ...]:
    """Tokens that end a response by the model's `generation_config`, or else its configuration.

    Raises:
        ConfigError: No readable model there.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the configuration of model {path!r}: {error}") from error
    ends = _end_tokens(path, config, revision)
    return () if ends is None else tuple(ends) if isinstance(ends, list) else (int(ends),)


def _end_tokens(path: str, config: Any, revision: str) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(path, revision=revision).eos_token_id
    except OSError:
        return GenerationConfig.from_model_config(config).eos_token_id


def _words(tokenizer: Any) -> Any:
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    named.pop("pad_token", None)  # a run sets it where there is none
    if not hasattr(tokenizer, "backend_tokenizer"):
        return [tokenizer.get_vocab(), named]
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return [{k: v for k, v in backend.items() if k not in ("padding", "truncation")}, named]
