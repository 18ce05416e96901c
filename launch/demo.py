"""`make demo`: SFT, GRPO and PPO of a tiny model on one pool, and a table of what each brought.

Model and task are made on the spot (`rlhf_ray.data.sorting`). GRPO and PPO start from the same
weights, those that SFT leaves, and are measured on the same held-out prompts.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rlhf_ray.config.base import JobConfig
from rlhf_ray.config.load import load_config
from rlhf_ray.config.online import GrpoConfig, OnlineConfig, PpoConfig
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.data.sorting import write_model, write_task
from rlhf_ray.errors import RlhfRayError

if TYPE_CHECKING:
    from actors.pool import Pool

FOLDER = Path("runs/demo")
AnyJob = TypeVar("AnyJob", bound=JobConfig)


def main() -> int:
    """Run the demo; returns the exit status."""
    started_s = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    write_task(FOLDER / "data", num_sft=4000, num_train=4000, num_test=256, seed=0)
    write_model(FOLDER / "model", seed=0)
    try:
        accuracies = asyncio.run(_train_all())
    except RlhfRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _print_table(accuracies, time.monotonic() - started_s)
    return 0


def _config(cls: type[AnyJob], job: str) -> AnyJob:
    return load_config(cls, f"configs/{job}/tiny-cpu.yaml", ["--run-dir", str(FOLDER / job)])


async def _train_all() -> Mapping[str, tuple[float, float]]:
    """Run the three jobs; returns accuracy before and after, by job."""
    from actors.pool import Pool
    from launch import sft
    from launch.cluster import connect, disconnect
    from launch.run_folder import run_folder
    from rlhf_ray.data.job import load_sft_data

    start, grpo, ppo = (
        _config(SftConfig, "sft"),
        _config(GrpoConfig, "grpo"),
        _config(PpoConfig, "ppo"),
    )
    # PPO has all five roles: what is room enough for it is so for the others.
    connect(ppo.ray, ppo.groups)
    pool = Pool("demo", ppo.timeouts)
    try:
        with run_folder(start):
            await sft.train(start, load_sft_data(start), pool)
        return {"GRPO": await _train(grpo, "grpo", pool), "PPO": await _train(ppo, "ppo", pool)}
    finally:
        await pool.close()
        disconnect()


async def _train(config: OnlineConfig, job: str, pool: Pool) -> tuple[float, float]:
    from launch import online
    from launch.run_folder import run_folder
    from rlhf_ray.data.job import load_online_data

    with run_folder(config) as folder:
        await online.train(config, load_online_data(config), pool, job)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows[0]["eval/reward_mean"], rows[-1]["eval/reward_mean"]


def _print_table(accuracies: Mapping[str, tuple[float, float]], seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="share of held-out numbers sorted without a mistake")
    for column in ("job", "after SFT", "after training", "points gained"):
        table.add_column(column, justify="left" if column == "job" else "right")
    for job, (before, after) in accuracies.items():
        gain = 100 * (after - before)
        table.add_row(job, f"{before:.1%}", f"{after:.1%}", f"{gain:+.1f}")
    Console().print(table, f"in {seconds:.0f} s; everything that was written is in {FOLDER}")


if __name__ == "__main__":
    sys.exit(main())
