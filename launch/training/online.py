"""PPO and GRPO on a pool: data first, then roles, then the loop."""

from __future__ import annotations

import logging
import time
from functools import partial

from actors.pool.pool import Pool
from launch.run.job import run_job
from launch.run.log import run_log
from launch.training.online_roles import start_roles
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.data.job import OnlineData, load_online_data

logger = logging.getLogger(__name__)


def run(config: OnlineConfig, job: str) -> int:
    """Run one job on a pool of its own or a standing one; returns the exit status."""
    return run_job(config, load_online_data, partial(train, job=job))


async def train(config: OnlineConfig, data: OnlineData, pool: Pool, job: str) -> None:
    """Run the loop on a pool, from the last checkpoint if `resume` says so, and export.

    Raises:
        ConfigError: The pool or a model does not fit the configuration.
        RunError: A role failed or the run diverged.
    """
    from rlhf_ray.loops.evaluation import Evaluation
    from rlhf_ray.loops.online import OnlineLoop
    from rlhf_ray.loops.setup import checkpoint_to_resume

    checkpoint = checkpoint_to_resume(config, data.prompts)
    started_s = time.monotonic()
    roles = await start_roles(config, data, pool)
    logger.info("all roles are ready after %.0f s", time.monotonic() - started_s)
    evaluation = Evaluation(config, data.eval_prompts)
    with run_log(config, job=job, checkpoint=checkpoint) as log:
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
        await loop.run(checkpoint)
    await pool.finish(config, "policy", data.tokenizer_path)
