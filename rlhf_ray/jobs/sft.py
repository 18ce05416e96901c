"""Supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.data.examples.sft import Examples
from rlhf_ray.jobs import on_rows
from rlhf_ray.jobs.job import Job
from rlhf_ray.jobs.on_rows import RowRoles, SupervisedData
from rlhf_ray.jobs.pool import SupervisedRole
from rlhf_ray.jobs.rows import JobRows, end_token_ids
from rlhf_ray.jobs.tables import continuation_table, prompts_of
from rlhf_ray.metrics.log import Table
from rlhf_ray.roles.reports import Evaluated
from rlhf_ray.types import SftExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class SftData(SupervisedData[SftExample]):
    """Examples, and the tokens that end what the model writes for an evaluation's table."""

    end_token_ids: tuple[int, ...]


def _rows(config: SftConfig, tokenizer: PreTrainedTokenizerBase) -> JobRows:
    return on_rows.rows_of(config, tokenizer, lambda key: Examples)


def _load(config: SftConfig) -> SftData:
    data = on_rows.load(config, on_rows.open_rows(config, _rows))
    ends = end_token_ids(config.policy.model, data.tokenizer)
    return SftData(**vars(data), end_token_ids=ends)


async def _tables(
    config: SftConfig,
    data: SftData,
    policy: SupervisedRole,
    step: int,
    rows: Sequence[SftExample],
    evaluated: Evaluated,
) -> list[Table]:
    shown = rows[: config.eval.table_rows]
    if not shown:
        return []
    written = await policy.continuations(
        prompts_of(shown),
        max_new_tokens=config.eval.max_new_tokens,
        end_ids=data.end_token_ids,
    )
    return [continuation_table(step, shown, written, data.tokenizer)]


SFT: Job[SftConfig, SftData, RowRoles] = Job(
    config=SftConfig,
    rows=_rows,
    load=_load,
    specs=on_rows.specs,
    roles=on_rows.load_trained,
    loop=on_rows.loop_with(_tables),
    marked="trained tokens",
    headline=("eval/loss", "sft/loss"),
)
