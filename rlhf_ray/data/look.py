"""A look at a job's data before it runs: what was recognised, counts, lengths and the first rows.

Everything is read as the job reads it; of models the tokenizer and `config.json` alone are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from rlhf_ray.config.data import DataConfig
from rlhf_ray.config.jobs import AnyJob
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.supervised import DpoConfig, RmConfig
from rlhf_ray.data.job_limits import most_tokens, prompt_room, tokenizer_of
from rlhf_ray.data.lengths import LengthLimit
from rlhf_ray.data.loading import load
from rlhf_ray.data.preferences import Answers, LabelledAnswers, Pairs, Rankings, check_labels
from rlhf_ray.data.prompts import Prompts
from rlhf_ray.data.report import LeftOut, Loaded, RowReport, merged
from rlhf_ray.data.rows import Numbers
from rlhf_ray.data.sft import Examples
from rlhf_ray.data.stream_sources import open_passes
from rlhf_ray.data.tokenization import Tokenization
from rlhf_ray.rewards.checks import checking_functions, prompt_faults, usable_prompts
from rlhf_ray.rewards.columns import check_columns
from rlhf_ray.rewards.functions import RewardFunction

STREAMED_ROWS = 100  # of a stream, and what is read along with them


@dataclass(frozen=True, kw_only=True)
class Look:
    """One data set of a job.

    Attributes:
        key: Where the configuration names it.
        tokenizer: Of the model that is trained.
        limit: The most tokens of a sequence.
        report: What became of the rows.
        lengths: Tokens of each row's longest sequence.
        rows: The first records.
        is_streamed: Whether these are the beginning of a stream alone.
    """

    key: str
    tokenizer: Any
    limit: LengthLimit
    report: RowReport
    lengths: Numbers
    rows: Sequence[Any]
    is_streamed: bool


def named_data(config: AnyJob) -> dict[str, DataConfig]:
    """The data sets of a job by their keys: to train on, held out, and for references."""
    sets = {"data": config.data, "eval.data": config.eval.data}
    if isinstance(config, RmConfig):
        sets["reference_data"] = config.reference_data
    return {key: data for key, data in sets.items() if data.is_named}


def look(config: AnyJob, *, num_rows: int, skip: Sequence[str] = ()) -> Iterator[Look]:
    """Look at a job's data sets, one after the other.

    Args:
        config: Of the job.
        num_rows: Records to show of each.
        skip: Keys of data sets that are left alone.

    Raises:
        ConfigError: What the job would say of its data: unreadable, malformed, empty, too long, or
            not what a reward function can score.
    """
    functions: list[RewardFunction] = []
    if isinstance(config, OnlineConfig):
        functions = checking_functions(config.reward)
        tokenizer = tokenizer_of(config.policy.model)
    else:
        tokenizer = tokenizer_of(config.learner.model)
    for key, data in named_data(config).items():
        if key in skip:
            continue
        job = _job_of(config, key, data, tokenizer)
        see = _streamed if data.streaming else _loaded
        yield see(config, key, data, job, functions, num_rows)


def _job_of(config: AnyJob, key: str, data: DataConfig, tokenizer: Any) -> Tokenization[Any]:
    """What the job makes of the samples of one of its data sets."""
    kind: type[Tokenization[Any]]
    match config:
        case OnlineConfig():
            return Prompts.of(data, tokenizer, max_length=prompt_room(config))
        case RmConfig():
            kind = Answers if key == "reference_data" else Rankings
        case DpoConfig():
            kind = LabelledAnswers if "kto" in config.loss_type else Pairs
        case _:
            kind = Examples
    return kind.of(data, tokenizer, max_length=most_tokens(config, tokenizer))


def _loaded(
    config: AnyJob,
    key: str,
    data: DataConfig,
    job: Tokenization[Any],
    functions: Sequence[RewardFunction],
    num_rows: int,
) -> Look:
    loaded: Loaded[Any] = load(data, job, seed=config.seed)
    rows, report = loaded.rows, loaded.report
    if isinstance(config, OnlineConfig):
        check_columns(config.reward, rows, key=key)
        usable = usable_prompts(rows, functions, key=key, skip=data.on_bad_row == "skip")
        if num_refused := len(rows) - len(usable):
            report.num_kept -= num_refused
            report.left_out["rewards cannot score it"] = LeftOut(count=num_refused)
        rows = usable
    elif isinstance(job, LabelledAnswers) and key == "data":
        check_labels(rows)
    return Look(
        key=key,
        tokenizer=job.tokenizer,
        limit=job.limit,
        report=report,
        lengths=rows.numbers("length"),
        rows=list(rows[:num_rows]),
        is_streamed=False,
    )


def _streamed(
    config: AnyJob,
    key: str,
    data: DataConfig,
    job: Tokenization[Any],
    functions: Sequence[RewardFunction],
    num_rows: int,
) -> Look:
    check: Callable[[Any], Any] | None = None
    if functions:
        check = partial(prompt_faults, functions=functions)
    passes = open_passes(data, job, check=check)
    looks = [each.look(max(num_rows, STREAMED_ROWS)) for each in passes]
    by_source = [
        [job.kind.record(table.slice(row, 1)) for row in range(len(table))] for table, _ in looks
    ]
    # One of each source in turn.
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_source))
    records = [record for record in turns if record is not None]
    if isinstance(config, OnlineConfig):
        check_columns(config.reward, records, key=key)
    lengths = [table.column("length").to_numpy() for table, _ in looks]
    return Look(
        key=key,
        tokenizer=job.tokenizer,
        limit=job.limit,
        report=merged([report for _, report in looks], " + ".join(p.source.path for p in passes)),
        lengths=np.concatenate(lengths),
        rows=records[:num_rows],
        is_streamed=True,
    )
