"""The command `rlhf-ray rm`, and the same job on a pool that is there."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev

from actors.pool import Pool
from launch import cli
from launch.job import run_job
from launch.supervised import run_loop, start_learner
from rlhf_ray.config.supervised import RmConfig
from rlhf_ray.data.job import RmData, load_rm_data
from rlhf_ray.metrics.log import Table
from rlhf_ray.roles import Evaluated
from rlhf_ray.types import Ranking

logger = logging.getLogger(__name__)


def run(config: RmConfig) -> int:
    """Run the job on a pool of its own; returns the exit status."""
    return run_job(config, config.groups, load_rm_data, train)


async def train(config: RmConfig, data: RmData, pool: Pool) -> None:
    """Run the loop on a pool, from the last checkpoint if `resume` says so, and export.

    With the model go mean and spread of the rewards of the reference answers.

    Raises:
        ConfigError: The pool or the model does not fit the configuration.
        RunError: A rank failed or the run diverged.
    """
    from rlhf_ray.data.tokenizer import load_tokenizer
    from rlhf_ray.loops.supervised_tables import calibration_table, ranking_table
    from rlhf_ray.models.reward_statistics import write_statistics

    config = config.for_rows(len(data.rankings))
    reward = await start_learner(config, pool)
    tokenizer = load_tokenizer(data.tokenizer_path)

    async def show(step: int, rows: Sequence[Ranking], evaluated: Evaluated) -> list[Table]:
        outcomes, num_shown = evaluated.outcomes_B, config.eval.table_rows
        samples = ranking_table(step, rows[:num_shown], outcomes[:num_shown], tokenizer)
        tables = [samples] if num_shown else []
        return [*tables, calibration_table(step, outcomes)]

    await run_loop(config, pool, reward, data.rankings, data.eval_rankings, show=show)
    scores = [score for (score,) in await reward.score_answers(data.reference_answers)]
    mean, std = fmean(scores), pstdev(scores)
    logger.info(
        "%d reference answers score %.4g on average, with standard deviation %.4g",
        len(scores),
        mean,
        std,
    )
    await pool.finish(config, "reward", data.tokenizer_path)
    write_statistics(Path(config.run_dir) / "export", mean=mean, std=std)


if __name__ == "__main__":
    sys.exit(cli.main(["rm", *sys.argv[1:]]))
