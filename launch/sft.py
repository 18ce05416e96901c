"""The command `rlhf-ray sft`, and the same job on a pool that is there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from actors.pool.pool import Pool
from actors.ranks.supervised import SupervisedGroup
from launch import cli
from launch.run.job import run_job
from launch.training import supervised
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.data.job import SftData, load_sft_data
from rlhf_ray.loops.setup import PreparedJob
from rlhf_ray.metrics.log import Table
from rlhf_ray.roles import Evaluated
from rlhf_ray.types import SftExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run(config: SftConfig) -> int:
    """Run the job on a pool of its own; returns the exit status."""
    return run_job(config, load_sft_data, train)


async def train(job: PreparedJob[SftConfig, SftData], pool: Pool) -> None:
    """See `supervised.train`."""
    await supervised.train(job, pool, tables=partial(_tables, job.data.end_token_ids))


async def _tables(
    end_ids: Sequence[int],
    config: SftConfig,
    policy: SupervisedGroup,
    tokenizer: PreTrainedTokenizerBase,
    step: int,
    rows: Sequence[SftExample],
    evaluated: Evaluated,
) -> list[Table]:
    from rlhf_ray.loops.supervised_tables import continuation_table, prompts_of

    shown = rows[: config.eval.table_rows]
    if not shown:
        return []
    written = await policy.continuations(
        prompts_of(shown),
        max_new_tokens=config.eval.max_new_tokens,
        end_ids=end_ids,
    )
    return [continuation_table(step, shown, written, tokenizer)]


if __name__ == "__main__":
    sys.exit(cli.main(["sft", *sys.argv[1:]]))
