"""What SFT, reward models and DPO share on a pool: the role that learns, and its loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from actors.pool.pool import Pool
from actors.ranks.supervised import SupervisedGroup
from launch.run.log import run_log
from launch.training.actor_start import RANKS, tell_of_start
from rlhf_ray.config.supervised import SupervisedConfig
from rlhf_ray.data.job import SupervisedData
from rlhf_ray.loops.setup import PreparedJob
from rlhf_ray.loops.supervised import Prepare
from rlhf_ray.metrics.log import Table
from rlhf_ray.specs import SupervisedSpec

# Configuration, trained role, tokenizer, step, held-out rows and what was found of them -> tables.
Tables: TypeAlias = Callable[..., Awaitable[Sequence[Table]]]
# Configuration, data and pool -> what completes a batch by a frozen model, made ready first.
Reference: TypeAlias = Callable[[Any, Any, Pool], Awaitable[Prepare]]


async def train(
    job: PreparedJob[Any, Any],
    pool: Pool,
    *,
    tables: Tables,
    reference: Reference | None = None,
) -> SupervisedGroup:
    """Run the loop on a pool, from the job's checkpoint if it has one, and export.

    Returns:
        The trained role, as the pool still holds it.

    Raises:
        ConfigError: The pool or a model does not fit the configuration.
        RunError: A rank failed or the run diverged.
    """
    from rlhf_ray.data.chat.tokenizer import load_tokenizer
    from rlhf_ray.loops.supervised import SupervisedLoop

    config: SupervisedConfig = job.config
    data: SupervisedData[Any] = job.data
    data.keep_tokenizer()
    pool.place(config.groups)
    tell_of_start(pool, config.groups)
    await pool.make_room(config.groups)
    prepare = None if reference is None else await reference(config, data, pool)
    role = SupervisedGroup(
        await pool.start(config.trained_role, RANKS[config.trained_role]),
        config.learner,
        config.timeouts,
        pool.files_of(config.trained_role),
        exports_with=data.tokenizer_path if config.checkpoint.export == "each" else "",
    )
    spec = SupervisedSpec(
        job=config,
        total_steps=config.total_steps,
        replay_folder=str(Path(config.run_dir) / "skipped"),
    )
    await pool.load(config.trained_role, spec, path=config.learner.model.path)
    with run_log(config, job=config.job, checkpoint=job.checkpoint) as log:
        loop = SupervisedLoop(
            config,
            role,
            data.rows,
            data.eval_rows,
            log,
            prepare=prepare,
            show=partial(tables, config, role, load_tokenizer(data.tokenizer_path)),
            usage=partial(pool.usage, config.groups),
        )
        await loop.run(job.checkpoint)
    await pool.finish(config, config.trained_role, data.tokenizer_path)
    return role
