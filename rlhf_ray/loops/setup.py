"""What a checkpoint was made with: what a resumed run must not change, and what it may."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from rlhf_ray.config.data import DataConfig
from rlhf_ray.config.jobs import AnyJob
from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.config.tools.secrets import without_secrets
from rlhf_ray.data.order import TrainedRows, digest_of_rows
from rlhf_ray.errors import ConfigError, differences
from rlhf_ray.loops.checkpoints import Checkpoint, CheckpointStore

logger = logging.getLogger(__name__)

# Where a run is, how long it waits and what it tells: no part of what it trains.
SURROUNDINGS = {
    "run_dir",
    "resume",
    "ray",
    "wandb",
    "tensorboard",
    "timeouts",
    "failures",
    "checkpoint",
    "sentinels",
}
# How a model computes, not what.
MANNER = {"attention", "gradient_checkpointing", "trust_remote_code"}


def changes_since(config: AnyJob, dumped: Mapping[str, Any]) -> list[str]:
    """What a job would train now that it did not when `dump_config` wrote `dumped`; in words."""
    besides = {*SURROUNDINGS, "placement"}
    before = {key: value for key, value in dumped.items() if key not in besides}
    now = without_secrets(config.model_dump(mode="json", exclude=besides))
    return differences(dict(_flat(before)), dict(_flat(now)))


def setup_of(config: AnyJob, rows: TrainedRows[Any]) -> dict[str, Any]:
    """What a checkpoint holds of the job that trains on `rows`, which are tokenized.

    Returns:
        `fixed`: keys and values that the checkpoint depends on. `settings`: all of the
        configuration that has to do with training, key by key.
    """
    given = config.model_dump(mode="json", exclude=SURROUNDINGS)
    # How many score says nothing of what they say.
    given["placement"].pop("reward_worker", None)
    return {
        "fixed": {**_fixed(config), "the data's rows (digest)": digest_of_rows(rows)},
        "settings": dict(_flat(without_secrets(given))),
    }


def checkpoint_to_resume(config: AnyJob, rows: TrainedRows[Any]) -> Checkpoint | None:
    """The newest whole checkpoint of `run_dir` where `resume` is `auto` and there is one.

    Other changes of the configuration are logged.

    Raises:
        ConfigError: It was made with another setup (names every key that differs), is behind the
            last step, or there are checkpoints and none is whole.
    """
    if config.resume == "never":
        return None
    found = CheckpointStore(Path(config.run_dir), keep=config.checkpoint.keep).latest()
    if found is not None:
        _compare(config.run_dir, found.state["setup"], setup_of(config, rows))
        if found.step > config.total_steps:
            raise ConfigError(
                f"total_steps must be at least the {found.step} steps that the run in "
                f"{config.run_dir} has done, got {config.total_steps}"
            )
    return found


def _compare(run_dir: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if changed := differences(saved["fixed"], now["fixed"]):
        raise ConfigError(f"the checkpoint in {run_dir} cannot be resumed: {'; '.join(changed)}")
    if changed := differences(saved["settings"], now["settings"]):
        logger.warning("the run goes on with other settings than before: %s", "; ".join(changed))


def _fixed(config: AnyJob) -> dict[str, Any]:
    fixed: dict[str, Any] = {"job": config.job, "seed": config.seed, **_data(config.data)}
    for role, learner in config.learners.items():
        fixed |= _role(role, learner, config.groups[role].ranks)
    return fixed | {key: attrgetter(key)(config) for key in config.fixed_keys}


def _role(role: str, learner: LearnerConfig, num_ranks: int) -> dict[str, Any]:
    model = learner.model.model_dump(mode="json", exclude=MANNER)
    return {
        **dict(_flat(model, f"{role}.model.")),
        f"{role}.zero.stage": learner.zero.stage,
        f"placement.{role}.ranks": num_ranks,
    }


def _data(data: DataConfig) -> dict[str, Any]:
    """What decides which rows there are and in which order."""
    given = data.model_dump(mode="json", exclude={"workers", "cache"})
    return {f"data.{key}": value for key, value in given.items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
