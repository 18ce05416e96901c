"""What a checkpoint was made with and a resumed run must not change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.errors import ConfigError


def setup_of(config: OnlineConfig | SftConfig) -> dict[str, Any]:
    """Keys and values that a checkpoint depends on."""
    setup: dict[str, Any] = {
        "seed": config.seed,
        "data.path": config.data.path,
        "policy.model.path": config.policy.model.path,
        "policy.model.lora.rank": config.policy.model.lora.rank,
        "policy.zero.stage": config.policy.zero.stage,
        "placement.policy.ranks": config.placement.policy.ranks,
    }
    if isinstance(config, OnlineConfig) and config.uses_value:
        setup["value.zero.stage"] = config.value.zero.stage
        setup["placement.value.ranks"] = config.placement.value.ranks
    return setup


def check_setup(config: OnlineConfig | SftConfig, saved: Mapping[str, Any]) -> None:
    """Compare with a checkpoint.

    Raises:
        ConfigError: Names every key that differs.
    """
    now = setup_of(config)
    changed = [
        f"{key} was {saved.get(key)!r}, is {now.get(key)!r}"
        for key in sorted({*saved, *now})
        if saved.get(key) != now.get(key)
    ]
    if changed:
        raise ConfigError(
            f"the checkpoint in {config.run_dir} cannot be resumed: {'; '.join(changed)}"
        )
