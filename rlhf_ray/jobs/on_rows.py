"""What SFT, reward models and DPO share: rows of a data set, and one role that learns from them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from rlhf_ray.config.models import ModelConfig
from rlhf_ray.config.supervised import SupervisedConfig
from rlhf_ray.data.order import TrainedRows
from rlhf_ray.jobs.pool import Pool, SupervisedRole
from rlhf_ray.jobs.rows import AnyRows, JobData, JobRows, RowKind, context_of, tokenizer_of
from rlhf_ray.loops.supervised import Prepare, SupervisedLoop
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.metrics.log import Table
from rlhf_ray.metrics.usage import Usage
from rlhf_ray.roles.reports import Evaluated
from rlhf_ray.specs import Spec, SupervisedSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SupervisedData(JobData, Generic[T]):
    """Rows.

    Attributes:
        rows: To train on.
        eval_rows: Held out.
    """

    rows: TrainedRows[T]
    eval_rows: Sequence[T]

    @property
    def trained_rows(self) -> TrainedRows[T]:
        """The rows."""
        return self.rows


@dataclass(frozen=True, kw_only=True)
class RowRoles:
    """What the loop takes.

    Attributes:
        prepare: Completes a batch by a frozen model; None for nothing to complete.
    """

    trained: SupervisedRole
    prepare: Prepare | None = None


# Configuration, data, trained role, step, held-out rows and what was found of them -> tables.
Tables: TypeAlias = Callable[
    [Any, Any, SupervisedRole, int, Sequence[Any], Evaluated], Awaitable[Sequence[Table]]
]


def rows_of(config: SupervisedConfig, tokenizer: PreTrainedTokenizerBase, kind: RowKind) -> JobRows:
    """The job's data sets; `kind` says what becomes of the samples of each."""
    most = partial(_most_tokens, config, tokenizer)
    return JobRows(config, tokenizer, kind=kind, most_tokens=most)


def _most_tokens(config: SupervisedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Of a sequence."""
    if config.max_length:
        return config.max_length
    context = context_of(config.learner.model)
    if config.model_kind == "classifier":
        # An encoder's positions may begin above 0: its tokenizer knows how many are left.
        return min(context, int(tokenizer.model_max_length))
    return context


def open_rows(
    config: SupervisedConfig,
    rows: Callable[[Any, PreTrainedTokenizerBase], JobRows],
) -> JobRows:
    """The job's data sets, with the tokenizer of a model that can be trained.

    Raises:
        ConfigError: It cannot, or its tokenizer cannot be read.
    """
    from rlhf_ray.models.fit import check_model

    model = config.learner.model
    check_model(f"{config.trained_role}.model.path", model, config.model_kind, is_trained=True)
    return rows(config, tokenizer_of(model))


def load(config: SupervisedConfig, rows: JobRows) -> SupervisedData[Any]:
    """Rows to train on and held out, that the job's models take.

    Raises:
        ConfigError: Unreadable, malformed, empty, or too long for the context.
    """
    from rlhf_ray.models import fit

    trained = rows.trained()
    held_out = rows.held_out()
    data: list[AnyRows] = [trained, *([held_out] if held_out else [])]
    key, model = f"{config.trained_role}.model.path", config.learner.model
    longest = max(map(fit.longest_sequence, data))
    for each in data:
        fit.check_tokens(key, model, rows.tokenizer, each)
    fit.check_room(key, model, longest)
    reference = config.models.get("reference", ModelConfig())
    if reference.path:
        fit.check_model("reference.model.path", reference, "causal", is_trained=False)
        fit.check_room("reference.model.path", reference, longest)
    return SupervisedData(rows=trained, eval_rows=held_out or [], tokenizer=rows.tokenizer)


def specs(config: SupervisedConfig, data: SupervisedData[Any]) -> dict[str, Spec]:
    """The trained role's."""
    spec = SupervisedSpec(
        job=config,
        total_steps=config.total_steps,
        replay_folder=str(Path(config.run_dir) / "skipped"),
    )
    return {config.trained_role: spec}


async def load_trained(
    config: SupervisedConfig,
    data: SupervisedData[Any],
    specs: Mapping[str, Spec],
    pool: Pool,
) -> RowRoles:
    """The trained role alone."""
    role = config.trained_role
    return RowRoles(trained=await pool.load(role, specs[role]))


def loop_with(tables: Tables) -> Callable[..., SupervisedLoop]:
    """What puts the loop together, which shows `tables` of each evaluation."""

    def loop(
        config: SupervisedConfig,
        data: SupervisedData[Any],
        roles: RowRoles,
        log: MetricsLog,
        usage: Usage,
    ) -> SupervisedLoop:
        return SupervisedLoop(
            config,
            roles.trained,
            data.rows,
            data.eval_rows,
            log,
            prepare=roles.prepare,
            show=partial(tables, config, data, roles.trained),
            usage=usage,
        )

    return loop
