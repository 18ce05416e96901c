"""Models that are in this process's memory: what loads a model by its path asks here first.

A stage of a pipeline leaves its result in the actors' memory; the folder of that path then holds
configuration and tokenizer, but not always weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

_weights: dict[str, Mapping[str, Tensor]] = {}


def provide(path: str, weights: Mapping[str, Tensor]) -> None:
    """From now on the model at `path` has these weights, by their checkpoint names."""
    _weights[path] = weights


def weights_of(path: str) -> Mapping[str, Tensor] | None:
    """Its weights, or None where only the folder has them."""
    return _weights.get(path)


def forget(path: str) -> None:
    """The folder speaks for itself again; the memory is free."""
    _weights.pop(path, None)


def pretrained(auto: Any, path: str, **keywords: Any) -> Any:
    """As `auto.from_pretrained(path, ...)`, but with the weights in memory where there are any.

    Args:
        auto: One of transformers' auto classes.
        path: Folder or hub name.
        keywords: As `from_pretrained` takes them.
    """
    weights = weights_of(path)
    if weights is None:
        return auto.from_pretrained(path, **keywords)
    from transformers import AutoConfig, GenerationConfig

    trust = keywords.pop("trust_remote_code", False)
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
    model = _class_of(auto, config, path if trust else "").from_pretrained(
        None, config=config, state_dict=dict(weights), **keywords
    )
    if (Path(path) / "generation_config.json").is_file():
        lm = model[0] if isinstance(model, tuple) else model
        lm.generation_config = GenerationConfig.from_pretrained(path)
    return model


def _class_of(auto: Any, config: Any, code_folder: str) -> Any:
    """The class that `auto` would take: it insists on a path with weights, its choice does not."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.models.auto.auto_factory import _get_model_class

    code = getattr(config, "auto_map", {}).get(auto.__name__)
    if code is not None and code_folder:
        return get_class_from_dynamic_module(code, code_folder)
    return _get_model_class(config, auto._model_mapping)
