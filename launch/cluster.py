"""The Ray cluster that a command runs on: one of its own on this machine, or one that is there."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping

import ray

from actors.placement import plan_groups, total_cpus
from launch.standing import address_of
from rlhf_ray.config.base import GroupConfig, RayConfig
from rlhf_ray.errors import ConfigError

logger = logging.getLogger(__name__)


def connect(config: RayConfig, roles: Mapping[str, GroupConfig]) -> None:
    """Join the cluster at `config.address` or of a standing pool, or start Ray on this machine.

    On a machine of its own a job may ask for more CPU cores than there are: roles mostly work by
    turns, and the cores are shared. On a cluster the cores of every role are reserved.

    Raises:
        ConfigError: Nobody listens at the address, or no such pool is known here.
    """
    if ray.is_initialized():
        return
    # A role that shares a GPU sets CUDA_VISIBLE_DEVICES itself; Ray must not empty it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = config.address or (address_of(config.pool) if config.pool else "")
    if address:
        join(address)
        return
    ray.init(
        # Without it Ray joins whatever cluster was last started on this machine.
        address="local",
        num_cpus=num_cpus(config, roles),
        num_gpus=config.num_gpus or None,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def num_cpus(config: RayConfig, roles: Mapping[str, GroupConfig]) -> int:
    """Cores that a cluster of one's own says it has."""
    wanted = math.ceil(total_cpus(plan_groups(roles)))
    return max(wanted, config.num_cpus or os.cpu_count() or 1)


def join(address: str) -> None:
    """Connect to a cluster that runs.

    Raises:
        ConfigError: Nobody listens at the address.
    """
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ConfigError(
            f"ray.address is {address!r}, but no cluster answers there: {error}"
        ) from error


def disconnect() -> None:
    """Leave the cluster, or end the one of our own."""
    ray.shutdown()
