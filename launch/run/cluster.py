"""The Ray cluster that a command runs on: one of its own on this machine, or one that is there."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.job_config import JobConfig as RayJobConfig

from actors.cluster.ray_token import use_own_token
from actors.cluster.reachable import check_reachable
from actors.jobs.submission import describe_submission, is_submitted
from launch.run.messages import is_everything_shown
from launch.run.names import check_name
from launch.run.signals import interrupt_when_stopped, leave, on_stop
from launch.run.standing import address_of
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.config.run import JobConfig, RayConfig, RunConfig
from rlhf_ray.errors import ConfigError, RunError
from rlhf_ray.metrics.wandb_sink import wandb_url
from rlhf_ray.planning.groups import plan_groups, total_cpus

logger = logging.getLogger(__name__)

WATCH_S = 0.2
# What needs no cluster, such as the end of a W&B run, is done meanwhile.
CLOSE_S = 10.0


@contextmanager
def connected(run: RunConfig, roles: Mapping[str, GroupConfig]) -> Iterator[None]:
    """`connect`, then leave the cluster or end the one of our own.

    A stop that reaches the processes of a cluster of our own as well ends them first; what waits
    for Ray then waits for minutes, and in vain.
    """
    session = connect(run, roles)
    closed = threading.Event()
    try:
        with on_stop(lambda: _leave_when_gone(closed)):
            yield
    except RunError:
        if session is not None:
            logger.info("what the actors wrote is in %s/logs on their nodes", session)
        raise
    finally:
        ray.shutdown()
        closed.set()


def _leave_when_gone(closed: threading.Event) -> None:
    own = [process for process in psutil.Process().children() if process.name() == "raylet"]

    def watch() -> None:
        while all(node.is_running() and node.status() != psutil.STATUS_ZOMBIE for node in own):
            if closed.wait(WATCH_S):
                return
        if not closed.wait(CLOSE_S):
            leave()

    if own:
        threading.Thread(target=watch, daemon=True).start()


def runs_here(config: RayConfig) -> bool:
    """Whether a job runs on this machine alone, and on no cluster that is there already."""
    return not (config.address or config.pool or is_submitted())


def connect(run: RunConfig, roles: Mapping[str, GroupConfig]) -> str | None:
    """Join the cluster at `ray.address` or of a standing pool, or start Ray on this machine.

    What Ray's job API has started is on a cluster already, and joins that one if no address is
    given. On a machine of its own a job may ask for more CPU cores than there are: roles mostly
    work by turns, and the cores are shared. On a cluster the cores of every role are reserved.

    Returns:
        The folder of Ray's session; None where this process is connected already.

    Raises:
        ConfigError: The cluster cannot be joined, or no such pool is known here.
    """
    if ray.is_initialized():
        return None
    config = run.ray
    if config.pool:
        check_name("ray.pool", config.pool)
    # A role that shares a GPU sets CUDA_VISIBLE_DEVICES itself; Ray must not empty it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = config.address or ("auto" if is_submitted() else "")
    if not address and config.pool:
        address = address_of(config.pool)
    if address:
        metadata = metadata_of(run)
        session = join(address, metadata)
        describe_submission(metadata)
        return session
    use_own_token()
    return _init(
        # Without it Ray joins whatever cluster was last started on this machine.
        address="local",
        num_cpus=num_cpus(config, roles),
        num_gpus=config.num_gpus or None,
        include_dashboard=False,
    )


def metadata_of(config: RunConfig) -> dict[str, str]:
    """What Ray's dashboard shows: job, run, folder and, where it is known, the page at W&B."""
    metadata = {"job": config.job, "run": Path(config.run_dir).name, "run_dir": config.run_dir}
    url = wandb_url(config.wandb, Path(config.run_dir)) if isinstance(config, JobConfig) else ""
    return metadata | ({"wandb": url} if url else {})


def num_cpus(config: RayConfig, roles: Mapping[str, GroupConfig]) -> int:
    """Cores that a cluster of one's own says it has."""
    wanted = math.ceil(total_cpus(plan_groups(roles)))
    return max(wanted, config.num_cpus or os.cpu_count() or 1)


def join(address: str, metadata: Mapping[str, str] | None = None) -> str:
    """Connect to a cluster that runs; returns the folder of its session.

    Args:
        address: `host:port`, or `auto` for the one that this machine or job belongs to.
        metadata: What Ray's dashboard shows of this process.

    Raises:
        ConfigError: No cluster answers, or it runs another version of Ray or Python.
    """
    known = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if known not in ("", "auto"):
        check_reachable(known)
    try:
        return _init(address=address, job_config=RayJobConfig(metadata=dict(metadata or {})))
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise ConfigError(f"the cluster at {address!r} cannot be joined: {reason}") from error


def _init(**options: Any) -> str:
    """The session's folder.

    `ray.init` sets a handler of SIGTERM of its own, one that exits with status 15.
    """
    try:
        context = ray.init(
            log_to_driver=is_everything_shown(),
            logging_level=logging.INFO if is_everything_shown() else logging.ERROR,
            **options,
        )
        return str(context.address_info["session_dir"])  # type: ignore[attr-defined]
    except SystemExit as stopped:
        raise KeyboardInterrupt from stopped
    finally:
        interrupt_when_stopped()
