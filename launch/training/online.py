"""PPO and GRPO on a pool: data first, then roles, then the loop."""

from __future__ import annotations

import logging
import time
from functools import partial

from actors.pool.pool import Pool
from launch.run.job import run_job
from launch.run.log import run_log
from launch.training.online_roles import start_roles
from rlhf_ray.config.jobs import job_name
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.data.job import OnlineData, load_online_data
from rlhf_ray.loops.setup import PreparedJob

logger = logging.getLogger(__name__)


def run(config: OnlineConfig) -> int:
    """Run one job on a pool of its own or a standing one; returns the exit status."""
    return run_job(config, load_online_data, train)


async def train(job: PreparedJob[OnlineConfig, OnlineData], pool: Pool) -> None:
    """Run the loop on a pool, from the job's checkpoint if it has one, and export.

    Raises:
        ConfigError: The pool or a model does not fit the configuration.
        RunError: A role failed or the run diverged.
    """
    from rlhf_ray.loops.evaluation import Evaluation
    from rlhf_ray.loops.online import OnlineLoop

    config, data = job.config, job.data
    started_s = time.monotonic()
    roles = await start_roles(config, data, pool)
    logger.info("all roles are ready after %.0f s", time.monotonic() - started_s)
    evaluation = Evaluation(config, data.eval_prompts)
    with run_log(config, job=job_name(config), checkpoint=job.checkpoint) as log:
        loop = OnlineLoop(
            config,
            roles,
            data.prompts,
            evaluation,
            log,
            num_policy_ranks=config.placement.policy.ranks,
            num_value_ranks=config.placement.value.ranks,
            usage=partial(pool.usage, config.groups),
        )
        await loop.run(job.checkpoint)
    await pool.finish(config, "policy", data.tokenizer_path)
