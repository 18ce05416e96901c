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


def class_of(auto: Any, config: Any, code_folder: str) -> Any:
    """The class that one of transformers' auto classes would take.

    The auto classes insist on a path that holds weights; their choice of a class does not.

    Args:
        auto: The auto class.
        config: Of the model.
        code_folder: Where code that comes with the model may be taken from; empty for none.
    """
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.models.auto.auto_factory import _get_model_class

    code = getattr(config, "auto_map", {}).get(auto.__name__)
    if code is not None and code_folder:
        return get_class_from_dynamic_module(code, code_folder)
    return _get_model_class(config, auto._model_mapping)


def generation_config_of(path: str) -> Any:
    """How text is generated, end tokens above all, by the folder of a held model; or None."""
    from transformers import GenerationConfig

    if not (Path(path) / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(path)
