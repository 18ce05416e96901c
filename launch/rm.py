"""The command `rlhf-ray rm`, and the same job on a pool that is there."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

from actors.pool.pool import Pool
from actors.ranks.supervised import SupervisedGroup
from launch import cli
from launch.run.job import run_job
from launch.training import supervised
from rlhf_ray.config.supervised import RmConfig
from rlhf_ray.data.job import RmData, load_rm_data
from rlhf_ray.loops.setup import PreparedJob
from rlhf_ray.metrics.log import Table
from rlhf_ray.roles import Evaluated
from rlhf_ray.types import Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def run(config: RmConfig) -> int:
    """Run the job on a pool of its own; returns the exit status."""
    return run_job(config, load_rm_data, train)


async def train(job: PreparedJob[RmConfig, RmData], pool: Pool) -> None:
    """See `supervised.train`; the reference answers' mean and spread go with the model."""
    from rlhf_ray.models.reward_statistics import write_statistics

    reward = await supervised.train(job, pool, tables=_tables)
    scores = [score for (score,) in await reward.score_answers(job.data.reference_answers)]
    mean, std = fmean(scores), pstdev(scores)
    logger.info(
        "%d reference answers score %.4g on average, with standard deviation %.4g",
        len(scores),
        mean,
        std,
    )
    write_statistics(Path(job.config.run_dir) / "export", mean=mean, std=std)


async def _tables(
    config: RmConfig,
    reward: SupervisedGroup,
    tokenizer: PreTrainedTokenizerBase,
    step: int,
    rows: Sequence[Ranking],
    evaluated: Evaluated,
) -> list[Table]:
    from rlhf_ray.loops.supervised_tables import calibration_table, ranking_table

    outcomes, num_shown = evaluated.outcomes_B, config.eval.table_rows
    samples = ranking_table(step, rows[:num_shown], outcomes[:num_shown], tokenizer)
    return [*([samples] if num_shown else []), calibration_table(step, rows, outcomes)]


if __name__ == "__main__":
    sys.exit(cli.main(["rm", *sys.argv[1:]]))
