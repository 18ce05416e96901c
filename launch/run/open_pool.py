"""The pool that a run works on: one of its own, ended with it, or a standing one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from actors.pool.pool import Pool
from actors.pool.record import PoolRecord, end_orphans
from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError


@asynccontextmanager
async def open_pool(config: RunConfig) -> AsyncIterator[Pool]:
    """A pool on the cluster that this process is connected to.

    Raises:
        ConfigError: There is no standing pool of the name, or another job has it.
    """
    if not config.ray.pool:
        pool = Pool(Path(config.run_dir).name, config.timeouts)
        try:
            yield pool
        finally:
            await pool.close()
        return
    record = PoolRecord.find(config.ray.pool)
    if record is None:
        raise ConfigError(
            f"ray.pool is {config.ray.pool!r}, but the cluster has no such pool; "
            "`rlhf-ray pool up` starts one"
        )
    record.acquire(config.run_dir)
    try:
        pool = Pool(record.pool, config.timeouts, record=record)
        end_orphans(record)
        await pool.heal()
        yield pool
    finally:
        record.release()
