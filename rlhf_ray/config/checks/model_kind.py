"""What a model's own configuration says that rules it out for a role; read without transformers.

The same questions are asked of files here (`preflight`) and of what transformers makes of a hub's
name, where the data are read (`rlhf_ray.models.fit`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

from rlhf_ray.config.base import ModelConfig
from rlhf_ray.config.checks.model_limits import section, text_part

# A critic may start from a reward model; a classifier from any model.
Kind: TypeAlias = Literal["causal", "critic", "classifier"]

_ROLE_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_NO_DECODER = ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering", "ForPreTraining")
_CLASSIFIER = "ForSequenceClassification"


def kind_fault(config: Mapping[str, Any], kind: Kind) -> str | None:
    """Whether a model is of another kind than a role takes.

    Args:
        config: As in `config.json`.
        kind: That the role takes.
    """
    if kind == "classifier":
        return None
    names = config.get("architectures") or []
    what = " or ".join(names) or config.get("model_type")
    if config.get("is_encoder_decoder"):
        return f"is {what}, an encoder with a decoder: a decoder alone is wanted"
    unfit = _NO_DECODER if kind == "critic" else (*_NO_DECODER, _CLASSIFIER)
    if names and all(name.endswith(unfit) for name in names):
        return f"is {what}: a causal language model is wanted"
    return None


def quantization_fault(config: Mapping[str, Any], model: ModelConfig) -> str | None:
    """Whether a model that is to be trained comes in weights that cannot be.

    Args:
        config: As in `config.json`.
        model: How the role holds it.
    """
    if not config.get("quantization_config"):
        return None
    method = section(config, "quantization_config").get("quant_method") or "bitsandbytes"
    if method == "bitsandbytes" and model.lora.rank:
        return None
    return (
        f"holds weights that are quantized ({method}) and cannot be trained: name the model in "
        "bfloat16 or float32; model.quantization with lora.rank quantizes it here"
    )


def token_id_faults(config: Mapping[str, Any], generation: Mapping[str, Any]) -> Iterator[str]:
    """Padding, begin and end tokens that the model has no embedding of.

    Args:
        config: As in `config.json`.
        generation: As in `generation_config.json`.
    """
    num_rows = text_part(config).get("vocab_size")
    if not isinstance(num_rows, int):
        return
    files = {"config.json": text_part(config), "generation_config.json": generation}
    for file, values in files.items():
        for key in _ROLE_IDS:
            given = values.get(key)
            for token_id in given if isinstance(given, list) else [given]:
                if isinstance(token_id, int) and not 0 <= token_id < num_rows:
                    yield (
                        f"has {key} {token_id} in its {file}, but embeddings of the tokens 0 to "
                        f"{num_rows - 1} alone: correct it there"
                    )
