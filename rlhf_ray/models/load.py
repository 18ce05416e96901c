"""Models from a folder or hub name: dtype, attention, adapters, quantized bases."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_ray.config.base import ModelConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.models import attention

logger = logging.getLogger(__name__)


def resolve_dtype(
    name: Literal["auto", "float32", "bfloat16"], device: torch.device
) -> torch.dtype:
    """`auto` is bfloat16 on GPU and float32 on CPU, where bfloat16 is slow."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return torch.float32 if name == "float32" else torch.bfloat16


def resolve_attention(config: ModelConfig, device: torch.device) -> str:
    """Flash attention where it is installed and can run, else our own packed attention.

    Raises:
        ConfigError: Flash attention was asked for by name and is not there.
    """
    installed = importlib.util.find_spec("flash_attn") is not None and device.type == "cuda"
    if config.attention == "flash_attention_2" and not installed:
        raise ConfigError(
            "model.attention is flash_attention_2, which needs a GPU and the package flash-attn; "
            "set packed_sdpa or auto"
        )
    half = resolve_dtype(config.dtype, device) is torch.bfloat16
    if config.attention == "flash_attention_2" or (
        config.attention == "auto" and installed and half
    ):
        return "flash_attention_2"
    return attention.NAME


def load_causal_lm(config: ModelConfig, *, device: torch.device) -> PreTrainedModel:
    """A causal language model, ready to train or to score.

    Args:
        config: Where from and how.
        device: Where the weights go. Under ZeRO-3, enter DeepSpeed's context first and the weights
            are spread over ranks while they load.

    Raises:
        ConfigError: Unreadable model, or bitsandbytes missing for a quantized one.
    """
    attention.register()
    keywords: dict[str, Any] = {
        "revision": config.revision,
        "dtype": resolve_dtype(config.dtype, device),
        "attn_implementation": resolve_attention(config, device),
        "trust_remote_code": config.trust_remote_code,
    }
    if config.quantization != "none":
        _check_quantization(config, device)
        keywords["quantization_config"] = _quantization(config, keywords["dtype"])
        keywords["device_map"] = {"": device}
    try:
        model = AutoModelForCausalLM.from_pretrained(config.path, **keywords)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"cannot load a causal language model from {config.path!r}: {error}"
        ) from error
    if config.quantization == "none":
        model = model.to(device)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.lora.rank:
        model = _with_adapter(model, config)
    return model


def without_dropout(model: torch.nn.Module) -> None:
    """Switch dropout off where a policy must give a token the same probability every time.

    Else the ratio of new to old probability would be noise before the first update.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def _with_adapter(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model, prepare_model_for_kbit_training

    if config.quantization != "none":
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=config.gradient_checkpointing
        )
    elif config.gradient_checkpointing:
        model.enable_input_require_grads()
    lora = config.lora
    return get_peft_model(
        model,
        PeftLoraConfig(
            task_type="CAUSAL_LM",
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
        ),
    )


def _check_quantization(config: ModelConfig, device: torch.device) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.quantization is {config.quantization!r}, which needs the package bitsandbytes; "
            "install it, or set quantization: none"
        )
    if config.quantization == "4bit" and device.type == "cpu":
        # There bitsandbytes repacks weights at the first pass without gradients, and what
        # dequantizes them for publication does not know the new layout.
        raise ConfigError("model.quantization '4bit' needs a GPU; on a CPU take '8bit' or 'none'")


def _quantization(config: ModelConfig, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if config.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )
