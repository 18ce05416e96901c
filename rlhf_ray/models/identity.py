"""What a model is apart from its weights: architecture, end tokens, tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rlhf_ray.config.models import ModelConfig
from rlhf_ray.data.chat.tokenizer import load_tokenizer
from rlhf_ray.data.chat.turn_end import turn_end
from rlhf_ray.models.limits import read_config

# Of a configuration: they change whenever a model is loaded and saved, its function does not.
_VOLATILE = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "pad_token_id",
    "_attn_implementation", "quantization_config",
}  # fmt: skip


def engine_identity(model: ModelConfig) -> str:
    """Equal for two models that differ by their weights alone.

    Compared is what transformers makes of the files, not the files: a saved copy has other bytes.

    Raises:
        ConfigError: No readable model or tokenizer there.
    """
    config = read_config(model)
    tokenizer = load_tokenizer(
        model.tokenizer or model.path,
        chat_template=model.chat_template,
        trust_remote_code=model.trust_remote_code,
        revision=model.revision,
    )
    architecture = {k: v for k, v in config.to_dict().items() if k not in _VOLATILE}
    # vLLM ends responses by the model's end tokens without being asked, and always is asked to by
    # the chat template's, which an export names among the model's.
    end = turn_end(tokenizer)
    ends = {*_end_ids(model, config)}
    if end is not None and end.token_id is not None:
        ends.add(end.token_id)
    parts = [architecture, sorted(ends), _words(tokenizer)]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def generation_end_ids(model: ModelConfig) -> tuple[int, ...]:
    """Tokens that end a response by the model's `generation_config`, or else its configuration.

    Raises:
        ConfigError: No readable model there.
    """
    return _end_ids(model, read_config(model))


def _end_ids(model: ModelConfig, config: Any) -> tuple[int, ...]:
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(model.path, revision=model.revision).eos_token_id
    except OSError:
        ends = GenerationConfig.from_model_config(config).eos_token_id
    return () if ends is None else tuple(ends) if isinstance(ends, list) else (int(ends),)


def _words(tokenizer: Any) -> Any:
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    named.pop("pad_token", None)  # a run sets it where there is none
    if not hasattr(tokenizer, "backend_tokenizer"):
        return [tokenizer.get_vocab(), named]
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return [{k: v for k, v in backend.items() if k not in ("padding", "truncation")}, named]
