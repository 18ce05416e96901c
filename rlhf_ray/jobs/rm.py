"""Reward models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

from rlhf_ray.config.supervised import RmConfig
from rlhf_ray.data.examples.preferences import Answers, Rankings, best_of
from rlhf_ray.data.order import first_of
from rlhf_ray.jobs import on_rows
from rlhf_ray.jobs.job import Job
from rlhf_ray.jobs.on_rows import RowRoles, SupervisedData
from rlhf_ray.jobs.pool import SupervisedRole
from rlhf_ray.jobs.rows import JobRows
from rlhf_ray.jobs.tables import calibration_table, ranking_table
from rlhf_ray.metrics.log import Table
from rlhf_ray.roles.reports import Evaluated
from rlhf_ray.types import Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RmData(SupervisedData[Ranking]):
    """Rankings, and answers that shall score 0 on average, one a row."""

    reference_answers: Sequence[Ranking]


def _rows(config: RmConfig, tokenizer: PreTrainedTokenizerBase) -> JobRows:
    return on_rows.rows_of(
        config, tokenizer, lambda key: Answers if key == "reference_data" else Rankings
    )


def _load(config: RmConfig) -> RmData:
    rows = on_rows.open_rows(config, _rows)
    data = on_rows.load(config, rows)
    num_answers = config.reference_rows
    if "reference_data" in rows.named:
        answers = list(rows.load("reference_data").rows[:num_answers])
    else:
        answers = [
            best_of(ranking) for ranking in first_of(data.eval_rows or data.rows, num_answers)
        ]
    return RmData(**vars(data), reference_answers=answers)


async def _write_statistics(config: RmConfig, data: RmData, roles: RowRoles) -> None:
    """The reference answers' mean and spread go with the model."""
    from rlhf_ray.models.reward_statistics import write_statistics

    scores = [score for (score,) in await roles.trained.score_answers(data.reference_answers)]
    mean, std = fmean(scores), pstdev(scores)
    logger.info(
        "%d reference answers score %.4g on average, with standard deviation %.4g",
        len(scores),
        mean,
        std,
    )
    write_statistics(Path(config.run_dir) / "export", mean=mean, std=std)


async def _tables(
    config: RmConfig,
    data: RmData,
    reward: SupervisedRole,
    step: int,
    rows: Sequence[Ranking],
    evaluated: Evaluated,
) -> list[Table]:
    outcomes, num_shown = evaluated.outcomes_B, config.eval.table_rows
    samples = ranking_table(step, rows[:num_shown], outcomes[:num_shown], data.tokenizer)
    return [*([samples] if num_shown else []), calibration_table(step, rows, outcomes)]


RM: Job[RmConfig, RmData, RowRoles] = Job(
    config=RmConfig,
    rows=_rows,
    load=_load,
    specs=on_rows.specs,
    roles=on_rows.load_trained,
    loop=on_rows.loop_with(_tables),
    at_end=_write_statistics,
    marked="answers that are scored",
    headline=("eval/accuracy", "rm/accuracy"),
)
