"""The command `rlhf-ray sample`, and the same job on a pool that is there."""

from __future__ import annotations

import sys
from functools import partial

from actors.pool.pool import Pool
from launch import cli
from launch.run.job import run_job
from launch.run.log import run_log
from launch.training.online_roles import start_roles
from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.data.job import OnlineData, load_online_data
from rlhf_ray.loops.setup import PreparedJob


def run(config: SampleConfig) -> int:
    """Run the job on a pool of its own; returns the exit status."""
    return run_job(config, load_online_data, train)


async def train(job: PreparedJob[SampleConfig, OnlineData], pool: Pool) -> None:
    """Sample and judge on a pool, behind what is written already where there is a checkpoint.

    `pairs.jsonl` and `samples.jsonl` are then in the run's folder.

    Raises:
        ConfigError: The pool or a model does not fit the configuration.
        RunError: A role failed.
    """
    from rlhf_ray.loops.evaluation import Evaluation
    from rlhf_ray.loops.sampling import SampleLoop

    config, data = job.config, job.data
    roles = await start_roles(config, data, pool)
    evaluation = Evaluation(config, data.eval_prompts)
    usage = partial(pool.usage, config.groups)
    with run_log(config, job="sample", checkpoint=job.checkpoint) as log:
        loop = SampleLoop(config, roles, data.prompts, evaluation, log, usage=usage)
        await loop.run(job.checkpoint)


if __name__ == "__main__":
    sys.exit(cli.main(["sample", *sys.argv[1:]]))
