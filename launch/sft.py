"""The command `rlhf-ray sft`, and the same job on a pool that is there."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from actors.policy import PolicyRank
from actors.pool import Pool
from actors.supervised import SupervisedGroup
from launch import cli
from launch.cluster import connect, disconnect
from launch.run_folder import run_folder
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.data.job import SftData, load_sft_data
from rlhf_ray.specs import SftSpec


def run(config: SftConfig) -> int:
    """Run the job on a pool of its own; returns the exit status."""
    with run_folder(config):
        data = load_sft_data(config)
        connect(config.ray, {"policy": config.placement.policy})
        try:
            asyncio.run(_run(config, data))
        finally:
            disconnect()
    return 0


async def _run(config: SftConfig, data: SftData) -> None:
    pool = Pool(Path(config.run_dir).name, config.timeouts)
    try:
        await train(config, data, pool)
    finally:
        await pool.close()


async def train(config: SftConfig, data: SftData, pool: Pool) -> None:
    """Run the loop on a pool, from the last checkpoint if `resume` says so, and export.

    Raises:
        ConfigError: The pool or the model does not fit the configuration.
        RunError: A rank failed or the run diverged.
    """
    from rlhf_ray.loops.setup import checkpoint_to_resume
    from rlhf_ray.loops.supervised import SupervisedLoop
    from rlhf_ray.metrics import open_metrics

    run_dir = Path(config.run_dir)
    checkpoint = checkpoint_to_resume(config)
    pool.place({"policy": config.placement.policy})
    actors = await pool.rank_group("policy", PolicyRank)
    spec = SftSpec(
        learner=config.policy,
        total_steps=config.total_steps,
        replay_folder=str(run_dir / "skipped"),
        seed=config.seed,
    )
    await actors.call("load", spec, timeout_s=config.timeouts.start_s)
    policy = SupervisedGroup(actors, config.policy, config.timeouts)
    with open_metrics(
        config, job="sft", resumed_step=None if checkpoint is None else checkpoint.step
    ) as log:
        loop = SupervisedLoop(config, policy, data.examples, data.eval_examples, log)
        await loop.run(checkpoint)
    if config.checkpoint.export:
        await policy.export(str(run_dir / "export"), data.tokenizer_path)


if __name__ == "__main__":
    sys.exit(cli.main(["sft", *sys.argv[1:]]))
