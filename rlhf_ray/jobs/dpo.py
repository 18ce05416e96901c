"""Direct preference optimisation and its kin: a policy beside a frozen reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.data.examples.preferences import LabelledAnswers, Pairs
from rlhf_ray.data.rows.streaming import RowStream
from rlhf_ray.jobs import on_rows
from rlhf_ray.jobs.job import Job
from rlhf_ray.jobs.on_rows import RowRoles, SupervisedData
from rlhf_ray.jobs.pool import Pool, RowReference, SupervisedRole
from rlhf_ray.jobs.referenced import (
    KeptReference,
    Row,
    precomputed,
    referenced,
    without_reference,
)
from rlhf_ray.jobs.rows import JobRows
from rlhf_ray.jobs.tables import labelled_table, ranking_table
from rlhf_ray.loops.supervised import Prepare
from rlhf_ray.metrics.log import Table
from rlhf_ray.roles.reports import Evaluated
from rlhf_ray.specs import ReferenceSpec, Spec
from rlhf_ray.types import LabelledAnswer, Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DpoData: TypeAlias = SupervisedData[Ranking] | SupervisedData[LabelledAnswer]


def _rows(config: DpoConfig, tokenizer: PreTrainedTokenizerBase) -> JobRows:
    return on_rows.rows_of(
        config, tokenizer, lambda key: LabelledAnswers if config.takes_labels else Pairs
    )


def _load(config: DpoConfig) -> DpoData:
    from rlhf_ray.models.fit import check_vocabularies

    rows = on_rows.open_rows(config, _rows)
    others = {"reference.model.path": config.reference.model} if config.uses_reference_role else {}
    check_vocabularies(config.policy.model, rows.tokenizer, others)
    return on_rows.load(config, rows)


def _specs(config: DpoConfig, data: DpoData) -> dict[str, Spec]:
    """The policy's, and the reference's where it is a role."""
    specs = on_rows.specs(config, data)
    if config.uses_reference_role:
        settings = config.reference.model_copy(update={"model": _reference_model(config)})
        specs["reference"] = ReferenceSpec(reference=settings, temperature=1.0)
    return specs


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


async def _roles(
    config: DpoConfig, data: DpoData, specs: Mapping[str, Spec], pool: Pool
) -> RowRoles:
    """The reference first: one that scores all rows ahead is gone before the policy comes."""
    if not config.uses_reference_role:
        policy: SupervisedRole = await pool.load("policy", specs["policy"])
        prepare = _asking(config, data, policy) if config.uses_reference else without_reference
        return RowRoles(trained=policy, prepare=prepare)
    reference: RowReference = await pool.load("reference", specs["reference"])
    if config.scores_rows_ahead:
        assert not isinstance(data.rows, RowStream), "the configuration refuses it"
        prepare = await precomputed(
            [data.rows, data.eval_rows],
            reference.answer_logps,
            _reference_folder(config),
            model=_identity(_reference_model(config)),
        )
        await pool.unload("reference")
    else:
        prepare = _asking(config, data, reference)
    return RowRoles(trained=await pool.load("policy", specs["policy"]), prepare=prepare)


def _asking(config: DpoConfig, data: DpoData, reference: RowReference | SupervisedRole) -> Prepare:
    """Asks about each batch; about rows that come again once."""
    rows = data.rows
    if isinstance(rows, RowStream) or config.total_steps * config.batch_size <= len(rows):
        return partial(referenced, answer_logps=reference.answer_logps)
    model = _identity(_reference_model(config))
    return KeptReference(reference.answer_logps, _reference_folder(config), model=model)


def _reference_folder(config: DpoConfig) -> Path:
    return Path(config.run_dir) / "reference"


def _identity(model: ModelConfig) -> str:
    """Tells a reference, and the weights in its folder, from others that stood there before."""
    files = sorted(Path(model.path).glob("*.safetensors"))
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{model.model_dump_json()} {stamps}"


async def _tables(
    config: DpoConfig,
    data: DpoData,
    policy: SupervisedRole,
    step: int,
    rows: Sequence[Row],
    evaluated: Evaluated,
) -> list[Table]:
    shown = rows[: config.eval.table_rows]
    if not shown:
        return []
    outcomes = evaluated.outcomes_B[: len(shown)]
    labelled = [row for row in shown if isinstance(row, LabelledAnswer)]
    if labelled:
        return [labelled_table(step, labelled, outcomes, data.tokenizer)]
    rankings = [row for row in shown if isinstance(row, Ranking)]
    return [ranking_table(step, rankings, outcomes, data.tokenizer)]


DPO: Job[DpoConfig, DpoData, RowRoles] = Job(
    config=DpoConfig,
    rows=_rows,
    load=_load,
    specs=_specs,
    roles=_roles,
    loop=on_rows.loop_with(_tables),
    marked="trained tokens",
    headline=("eval/rewards/accuracies", "rewards/accuracies", "dpo/loss"),
)
