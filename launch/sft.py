"""The command `rlhf-ray sft`, and the same job on a pool that is there."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from actors.pool import Pool
from launch import cli
from launch.job import run_job
from launch.supervised import run_loop, start_learner
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.data.job import SftData, load_sft_data
from rlhf_ray.metrics.log import Table
from rlhf_ray.roles import Evaluated
from rlhf_ray.types import SftExample


def run(config: SftConfig) -> int:
    """Run the job on a pool of its own; returns the exit status."""
    return run_job(config, config.groups, load_sft_data, train)


async def train(config: SftConfig, data: SftData, pool: Pool) -> None:
    """Run the loop on a pool, from the last checkpoint if `resume` says so, and export.

    Raises:
        ConfigError: The pool or the model does not fit the configuration.
        RunError: A rank failed or the run diverged.
    """
    from rlhf_ray.data.tokenizer import load_tokenizer
    from rlhf_ray.loops.supervised_tables import continuation_table, prompts_of

    config = config.for_rows(len(data.examples))
    policy = await start_learner(config, pool)
    tokenizer = load_tokenizer(data.tokenizer_path)

    async def show(step: int, rows: Sequence[SftExample], evaluated: Evaluated) -> list[Table]:
        shown = rows[: config.eval.table_rows]
        if not shown:
            return []
        written = await policy.continuations(
            prompts_of(shown),
            max_new_tokens=config.eval.max_new_tokens,
            end_id=tokenizer.eos_token_id,
        )
        return [continuation_table(step, shown, written, tokenizer)]

    await run_loop(config, pool, policy, data.examples, data.eval_examples, show=show)
    await pool.finish(config, "policy", data.tokenizer_path)


if __name__ == "__main__":
    sys.exit(cli.main(["sft", *sys.argv[1:]]))
