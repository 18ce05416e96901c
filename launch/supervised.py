"""What SFT, reward models and DPO share on a pool: the role that learns, and its loop."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from actors.pool import Pool
from actors.supervised import SupervisedGroup
from launch.actor_start import RANKS
from launch.run_log import run_log
from rlhf_ray.config.supervised import SupervisedConfig
from rlhf_ray.loops.supervised import Prepare, Show
from rlhf_ray.specs import SupervisedSpec


async def start_learner(config: SupervisedConfig, pool: Pool) -> SupervisedGroup:
    """The role that is trained, its model loaded.

    Raises:
        ConfigError: The pool or the model does not fit the configuration.
        RunError: An actor died or missed its deadline.
    """
    pool.place(config.groups)
    await pool.make_room(config.groups)
    role = config.trained_role
    actors = await pool.rank_group(role, RANKS[role])
    spec = SupervisedSpec(
        job=config,
        total_steps=config.total_steps,
        replay_folder=str(Path(config.run_dir) / "skipped"),
    )
    await pool.load(role, spec, path=config.learner.model.path)
    return SupervisedGroup(actors, config.learner, config.timeouts)


async def run_loop(
    config: SupervisedConfig,
    pool: Pool,
    role: SupervisedGroup,
    rows: Sequence[Any],
    eval_rows: Sequence[Any],
    *,
    prepare: Prepare | None = None,
    show: Show | None = None,
) -> None:
    """Train a role of the pool, from the last checkpoint if `resume` says so.

    Raises:
        RunError: A rank failed or the run diverged.
    """
    from rlhf_ray.loops.setup import checkpoint_to_resume
    from rlhf_ray.loops.supervised import SupervisedLoop

    checkpoint = checkpoint_to_resume(config)
    with run_log(config, job=config.job, checkpoint=checkpoint) as log:
        loop = SupervisedLoop(
            config,
            role,
            rows,
            eval_rows,
            log,
            prepare=prepare,
            show=show,
            usage=partial(pool.usage, config.groups),
        )
        await loop.run(checkpoint)
