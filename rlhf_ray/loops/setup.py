"""What a checkpoint was made with and a resumed run must not change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_ray.config.data import DataConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.config.supervised import DpoConfig, SupervisedConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.loops.checkpoints import Checkpoint, CheckpointStore


def setup_of(config: OnlineConfig | SupervisedConfig) -> dict[str, Any]:
    """Keys and values that a checkpoint depends on."""
    if isinstance(config, OnlineConfig):
        role, learner, num_ranks = "policy", config.policy, config.placement.policy.ranks
    else:
        role, learner, num_ranks = config.trained_role, config.learner, config.num_ranks
    setup: dict[str, Any] = {
        "seed": config.seed,
        **_data(config.data),
        f"{role}.model.path": learner.model.path,
        **{f"{role}.model.lora.{k}": v for k, v in learner.model.lora.model_dump().items()},
        f"{role}.zero.stage": learner.zero.stage,
        f"placement.{role}.ranks": num_ranks,
    }
    if isinstance(config, SupervisedConfig):
        setup |= {"batch_size": config.batch_size, "max_length": config.max_length}
    if isinstance(config, DpoConfig):
        setup |= {"loss_type": config.loss_type, "beta": config.beta}
    if isinstance(config, SampleConfig):
        setup |= {"samples_per_prompt": config.samples_per_prompt, "pairs": config.pairs}
    if isinstance(config, OnlineConfig) and config.uses_value:
        setup["value.zero.stage"] = config.value.zero.stage
        setup["placement.value.ranks"] = config.placement.value.ranks
    return setup


def _data(data: DataConfig) -> dict[str, Any]:
    """What decides which rows there are and in which order."""
    given = data.model_dump(mode="json", exclude={"workers", "cache"})
    return {f"data.{key}": value for key, value in given.items()}


def checkpoint_to_resume(config: OnlineConfig | SupervisedConfig) -> Checkpoint | None:
    """The newest whole checkpoint of `run_dir` where `resume` is `auto` and there is one.

    Raises:
        ConfigError: It was made with another setup; names every key that differs.
    """
    if config.resume == "never":
        return None
    found = CheckpointStore(Path(config.run_dir), keep=config.checkpoint.keep).latest()
    if found is not None:
        _compare(config, found.state["setup"])
    return found


def _compare(config: OnlineConfig | SupervisedConfig, saved: Mapping[str, Any]) -> None:
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
