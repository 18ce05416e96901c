"""The sizes of a model from its `config.json`, without transformers or torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_ray.errors import ConfigError
from rlhf_ray.planning.families import FAMILIES
from rlhf_ray.planning.model_shape import ModelShape


def read_shape(path: Path) -> ModelShape:
    """The shape of the model in a folder, or of a `config.json` by itself.

    Raises:
        ConfigError: Unreadable, or of a family that is not known here.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {str(file)!r}: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{str(file)!r} must hold a model's configuration, got no mapping")
    try:
        return shape_of(config)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"{str(file)!r} lacks or misstates a size: {error}") from error


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a configuration describes.

    Raises:
        ConfigError: A family that is not known here.
        KeyError: A size that its family needs is missing.
    """
    name = str(config.get("model_type", ""))
    if name not in FAMILIES:
        raise ConfigError(
            f"cannot plan for models of type {name!r}; known are {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[name](config)
