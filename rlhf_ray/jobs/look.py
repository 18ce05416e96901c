"""A look at a job's data before it runs: what was recognised, counts, lengths and the first rows.

Everything is read as the job reads it; of models the tokenizer and `config.json` alone are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from rlhf_ray.config.jobs import AnyJob
from rlhf_ray.data.loading.load import first_examples
from rlhf_ray.data.rows.report import merged
from rlhf_ray.jobs.rows import JobRows, Look, tokenizer_of
from rlhf_ray.jobs.table import JOBS

STREAMED_ROWS = 100  # of a stream, and what is read along with them


def look(config: AnyJob, *, num_rows: int, skip: Sequence[str] = ()) -> Iterator[Look]:
    """Look at a job's data sets but those to `skip`, one after the other.

    Raises:
        ConfigError: What the job would say of its data: unreadable, malformed, empty, too long, or
            not what a reward function can score.
    """
    rows = JOBS[config.job].rows(config, tokenizer_of(config.learner.model))
    for key, data in rows.named.items():
        if key not in skip:
            yield (_streamed if data.streaming else _loaded)(rows, key, num_rows)


def _loaded(rows: JobRows, key: str, num_rows: int) -> Look:
    loaded = rows.load(key)
    return Look(
        key=key,
        tokenizer=rows.tokenizer,
        limit=rows.tokenization(key).limit,
        report=loaded.report,
        lengths=loaded.rows.numbers("length"),
        rows=list(loaded.rows[:num_rows]),
        is_streamed=False,
    )


def _streamed(rows: JobRows, key: str, num_rows: int) -> Look:
    passes = rows.passes(key)
    looks = [first_examples(each, max(num_rows, STREAMED_ROWS)) for each in passes]
    kind = passes[0].job.kind
    by_source = [kind.records(table) for table, _ in looks]
    # One of each source in turn.
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_source))
    records = [record for record in turns if record is not None]
    rows.check_columns(key, records)
    lengths = [table.column("length").to_numpy() for table, _ in looks]
    return Look(
        key=key,
        tokenizer=rows.tokenizer,
        limit=passes[0].job.limit,
        report=merged([report for _, report in looks], " + ".join(p.source.path for p in passes)),
        lengths=np.concatenate(lengths),
        rows=records[:num_rows],
        is_streamed=True,
    )
