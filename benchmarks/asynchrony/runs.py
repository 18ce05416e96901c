"""Jobs one after the other on one pool of actors, which are started once."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from actors.pool.pool import Pool
from launch.job import prepare, run_on
from launch.run.cluster import connected
from rlhf_ray.config.base import laid_over
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.config.tools.yaml_file import read_yaml

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("RLHF_RAY_DATA", "../shared/data"))
STORIES = "configs/grpo/stories-cpu.yaml"
# One thread a role, whatever the machine has; roles without work take none of its cores.
LOGICAL_CPUS = 16
# Roles that a row does not ask for would take turns with policy and engine on two cores.
PLAIN: dict[str, Any] = {
    "algorithm": {"kl": {"coefficient": 0}},
    "checkpoint": {"export": "never"},
    "timeouts": {"start_s": 300, "call_s": 300},
    "ray": {"num_cpus": LOGICAL_CPUS},
}

Metrics = dict[str, float]


def stories_config(run_dir: Path, *sections: dict[str, Any]) -> GrpoConfig:
    """GRPO on stories as it is shipped, but for evaluations, with `sections` laid over it."""
    values: dict[str, Any] = dict(read_yaml(ROOT / STORIES).values)
    del values["eval"]
    for section in ({"run_dir": str(run_dir)}, *sections):
        values = laid_over(values, section)
    return GrpoConfig.model_validate(values)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """A pool that jobs run on, one at a time."""

    pool: Pool
    runner: asyncio.Runner

    def train(self, config: GrpoConfig, *, loop: Callable[..., Any] | None = None) -> list[Metrics]:
        """Run a job from its beginning, perhaps with another loop; the metrics of its steps.

        The first are those before step 1.
        """
        shutil.rmtree(config.run_dir, ignore_errors=True)
        prepared = prepare(config)
        if loop is not None:
            prepared = replace(prepared, job=replace(prepared.job, loop=loop))
        self.runner.run(run_on(self.pool, prepared))
        lines = (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@contextmanager
def open_runs(config: GrpoConfig) -> Iterator[Runs]:
    """Ray on this machine and a pool on it, for jobs with the roles of `config`."""
    with connected(config, config.groups), asyncio.Runner() as runner:
        pool = Pool("asynchrony", config.timeouts)
        try:
            yield Runs(pool=pool, runner=runner)
        finally:
            runner.run(pool.close())


def inner(metrics: list[Metrics]) -> list[Metrics]:
    """Of a run's steps all but the first and the last.

    The first waits for its rollouts and warms up; beside the last one nothing is sampled.
    """
    return metrics[2:-1]


def middle(steps: list[Metrics], name: str) -> float:
    """The median of a metric over steps."""
    return median(row[name] for row in steps)
