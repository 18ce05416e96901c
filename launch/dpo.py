"""The command `rlhf-ray dpo`, and the same job on a pool that is there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from actors.pool.pool import Pool
from actors.ranks.reference import ReferenceGroup
from actors.ranks.supervised import SupervisedGroup
from launch import cli
from launch.run.job import run_job
from launch.training import supervised
from launch.training.actor_start import RANKS
from rlhf_ray.config.base import ModelConfig
from rlhf_ray.config.supervised import DpoConfig
from rlhf_ray.data.job import SupervisedData, load_dpo_data
from rlhf_ray.data.rows.streaming import RowStream
from rlhf_ray.loops.referenced import Row, precomputed, referenced, without_reference
from rlhf_ray.loops.setup import PreparedJob
from rlhf_ray.loops.supervised import Prepare
from rlhf_ray.metrics.log import Table
from rlhf_ray.roles import Evaluated
from rlhf_ray.specs import ReferenceSpec
from rlhf_ray.types import LabelledAnswer, Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DpoData: TypeAlias = SupervisedData[Ranking] | SupervisedData[LabelledAnswer]


def run(config: DpoConfig) -> int:
    """Run the job on a pool of its own; returns the exit status."""
    return run_job(config, load_dpo_data, train)


async def train(job: PreparedJob[DpoConfig, DpoData], pool: Pool) -> None:
    """See `supervised.train`."""
    await supervised.train(job, pool, tables=_tables, reference=_reference)


async def _tables(
    config: DpoConfig,
    policy: SupervisedGroup,
    tokenizer: PreTrainedTokenizerBase,
    step: int,
    rows: Sequence[Row],
    evaluated: Evaluated,
) -> list[Table]:
    from rlhf_ray.loops.supervised_tables import labelled_table, ranking_table

    shown = rows[: config.eval.table_rows]
    if not shown:
        return []
    outcomes = evaluated.outcomes_B[: len(shown)]
    labelled = [row for row in shown if isinstance(row, LabelledAnswer)]
    if labelled:
        return [labelled_table(step, labelled, outcomes, tokenizer)]
    rankings = [row for row in shown if isinstance(row, Ranking)]
    return [ranking_table(step, rankings, outcomes, tokenizer)]


async def _reference(config: DpoConfig, data: DpoData, pool: Pool) -> Prepare:
    """What completes a batch by the reference's log-probabilities."""
    if not config.uses_reference_role:
        return without_reference
    actors = await pool.start("reference", RANKS["reference"])
    model = _reference_model(config)
    settings = config.reference.model_copy(update={"model": model})
    spec = ReferenceSpec(reference=settings, temperature=1.0)
    await pool.load("reference", spec, path=model.path)
    reference = ReferenceGroup(actors, settings, config.timeouts)
    if config.reference_kind == "role":
        return partial(referenced, answer_logps=reference.answer_logps)
    assert not isinstance(data.rows, RowStream), "the configuration refuses it"
    known = await precomputed(
        [data.rows, data.eval_rows],
        reference.answer_logps,
        Path(config.run_dir) / "reference",
        model=f"{model.model_dump_json()} {_stamps(model)}",
    )
    await pool.unload("reference")
    return known


def _reference_model(config: DpoConfig) -> ModelConfig:
    """The policy's start, held as the policy is, where the configuration says nothing else."""
    given, policy = config.reference.model, config.policy.model
    if given.path:
        return given
    alike = {
        name: getattr(policy, name)
        for name in ("dtype", "quantization")
        if name not in given.model_fields_set
    }
    return given.or_from(policy).model_copy(update=alike)


def _stamps(model: ModelConfig) -> list[tuple[str, int, int]]:
    """Tells the weights in a folder from others that stood there before."""
    files = sorted(Path(model.path).glob("*.safetensors"))
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


if __name__ == "__main__":
    sys.exit(cli.main(["dpo", *sys.argv[1:]]))
