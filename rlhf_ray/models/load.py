"""Models from a folder or hub name: adapters, quantized bases."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlhf_ray.config.models import ModelConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.models import attention, kernels, memory
from rlhf_ray.models.modes import attention_functions, checkpoint_layers, resolve_dtype
from rlhf_ray.models.sharding import whole_shape


def load_causal_lm(config: ModelConfig, *, device: torch.device) -> PreTrainedModel:
    """A causal language model, ready to train or to score.

    Inside an engine's `loading` weights may be spread over ranks while they load.

    Raises:
        ConfigError: Unreadable model, weights that it lacks, or bitsandbytes missing for a
            quantized one.
    """
    model, missing = load_pretrained(
        AutoModelForCausalLM, "causal language model", config, device=device
    )
    if missing:
        raise ConfigError(
            f"{config.path!r} is no causal language model: it lacks the weights "
            f"{', '.join(sorted(missing))}"
        )
    return with_adapter(model, config) if config.lora.rank else model


def load_pretrained(
    kind: Any,
    what: str,
    config: ModelConfig,
    *,
    device: torch.device,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, frozenset[str]]:
    """A model of any kind, from memory where it is held there, else from its folder or hub name.

    Args:
        kind: One of transformers' auto classes.
        what: The kind in words, for errors.
        config: Where from and how; adapters are not put on here.
        device: Where the weights go.
        overrides: Laid over the model's own configuration.

    Returns:
        The model, and the names of its weights that were not there: they are random.

    Raises:
        ConfigError: Unreadable, or held weights of another model.
    """
    attention.register()
    attention_functions(config, device)  # what is not there is found before minutes of loading
    hub = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    keywords: dict[str, Any] = {"dtype": resolve_dtype(config.dtype, device), **hub}
    if config.quantization != "none":
        keywords["quantization_config"] = _quantization(config, device, keywords["dtype"])
        keywords["device_map"] = {"": device}
    held = memory.weights_of(config.path)
    source = config.path if held is None else None
    try:
        keywords["config"] = AutoConfig.from_pretrained(config.path, **hub, **(overrides or {}))
        if held is not None:
            code_folder = config.path if config.trust_remote_code else ""
            kind = memory.class_of(kind, keywords["config"], code_folder)
            keywords["state_dict"] = dict(held)
        model, report = kind.from_pretrained(source, output_loading_info=True, **keywords)
    # A RuntimeError is a weight of another shape than the configuration's.
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"cannot load a {what} from {config.path!r}: {error}") from error
    below = f"{model.base_model_prefix}."
    foreign = [name for name in report["unexpected_keys"] if name.startswith(below)]
    if held is not None and foreign:
        raise ConfigError(
            f"the weights held for {config.path!r} are another model's: {', '.join(foreign)}"
        )
    if held is not None and (generation := memory.generation_config_of(config.path)) is not None:
        model.generation_config = generation
    if config.quantization == "none":
        model = model.to(device)
    if config.kernels == "liger":
        kernels.use_liger(model, device)
    if config.gradient_checkpointing:
        # Frozen weights under ZeRO-3 need the reentrant kind: see `token_logprobs`.
        checkpoint_layers(model, use_reentrant=config.lora.rank > 0)
    return model, frozenset(report["missing_keys"])


def with_adapter(
    model: PreTrainedModel, config: ModelConfig, *, head_names: Collection[str] = ()
) -> PreTrainedModel:
    """Put low-rank adapters on the model; heads, its children by name, are trained in full.

    All weights but quantized ones keep the dtype that passes run in; of what trains the optimiser
    holds float32 copies. peft would make adapters float32, and beside quantized weights embeddings,
    norms and heads too, so that attention and head compute in float32.

    Raises:
        ConfigError: No adapters as configured go onto this model.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    if config.gradient_checkpointing:
        model.enable_input_require_grads()
    lora, left_out = config.lora, [*head_names, *_own_products(model)]
    try:
        adapted = get_peft_model(
            model,
            PeftLoraConfig(
                task_type=None if head_names else "CAUSAL_LM",
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=lora.target_modules,
                exclude_modules=rf"({'|'.join(left_out)})(\..*)?" if left_out else None,
            ),
            autocast_adapter_dtype=False,
        )
    except ValueError as error:
        raise ConfigError(f"model.lora does not go onto {config.path!r}: {error}") from error
    if config.quantization != "none":
        # Adapters take the dtype of the weight below; of numbers in 4 bit there is none to take.
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(model.dtype)
    for name in head_names:
        model.get_submodule(name).requires_grad_(True)
    return adapted


def _own_products(model: torch.nn.Module) -> list[str]:
    """Names of matrices that the model's own code multiplies in its own way, as some routers do.

    peft takes them for plain ones, whose result it may add to.
    """
    code = type(model).__module__
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and type(module).__module__ == code
        and type(module).forward is not torch.nn.Linear.forward
        and not _is_plain_product(module)
    ]


def _is_plain_product(module: torch.nn.Linear) -> bool:
    """Whether its own pass gives one tensor of the width that its matrix says, as Falcon's does."""
    weights = {
        name: torch.empty(whole_shape(p), dtype=p.dtype, device="meta")
        for name, p in module.named_parameters()
    }
    hidden_BTD = torch.empty(1, 2, module.in_features, dtype=weights["weight"].dtype, device="meta")
    try:
        output = torch.func.functional_call(module, weights, (hidden_BTD,))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False  # it takes other things than one tensor of that width
    return isinstance(output, torch.Tensor) and output.shape == (1, 2, module.out_features)


def _quantization(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.quantization is {config.quantization!r}, which needs the package bitsandbytes; "
            "install it, or set quantization: none"
        )
    if config.quantization == "4bit" and device.type == "cpu":
        # There bitsandbytes repacks weights at the first pass without gradients, and what
        # dequantizes them for publication does not know the new layout.
        raise ConfigError("model.quantization '4bit' needs a GPU; on a CPU take '8bit' or 'none'")
    from transformers import BitsAndBytesConfig

    if config.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )
