"""From a configuration to a stream: what one pass over a data set reads, counts and tokenizes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, TypeVar

import pyarrow as pa

from rlhf_ray.config.data import DataConfig, SourceConfig
from rlhf_ray.data.errors import DataError, RowError
from rlhf_ray.data.examples.tokenization import RowWork, Tokenization
from rlhf_ray.data.files.hub import HubData
from rlhf_ray.data.files.local import LocalData
from rlhf_ray.data.files.sources import find_data, log_files, read_rows
from rlhf_ray.data.files.splits import parse_split
from rlhf_ray.data.formats.row_format import RowFormat
from rlhf_ray.data.loading.cache import decided_by
from rlhf_ray.data.loading.load import recognised
from rlhf_ray.data.loading.parallel import convert
from rlhf_ray.data.row import Row
from rlhf_ray.data.rows.report import Converted, RowReport
from rlhf_ray.data.rows.streaming import RowStream, SourceStream, StreamSettings

logger = logging.getLogger(__name__)

T = TypeVar("T")
# Examples -> what is wrong with each, None where nothing is.
Check = Callable[[Sequence[T]], Sequence[str | None]]


def open_stream(
    config: DataConfig, job: Tokenization[T], *, seed: int, check: Check[T] | None = None
) -> RowStream[T]:
    """The examples of a job's data as they are needed.

    Args:
        config: Of the data; `streaming` is set.
        job: What becomes of a row.
        seed: Of shuffling and mixing.
        check: What else may be wrong with an example; as a malformed row it is an error, or counted
            and left out.

    Raises:
        DataError: No such data, or a first row that the job cannot take.
    """
    settings = StreamSettings(
        seed=seed, shuffle=config.shuffle, block_rows=config.shuffle_buffer if config.shuffle else 1
    )
    digest = hashlib.blake2b(digest_size=16)
    sources = []
    for number, passes in enumerate(open_passes(config, job, check=check)):
        for part in passes.decided_by():
            digest.update(part.encode() + b"\0")
        sources.append(SourceStream(passes.read, job.kind, settings, source=number))
    shares = [source.probability for source in config.sources] or [1.0]
    return RowStream(
        sources, shares, settings, digest=digest.hexdigest(), longest=job.limit.num_tokens
    )


def open_passes(
    config: DataConfig, job: Tokenization[T], *, check: Check[T] | None = None
) -> list[Passes[T]]:
    """The passes over each data set, whose first rows are looked at.

    Raises:
        DataError: See `open_stream`.
    """
    named: Sequence[SourceConfig] = config.sources or [config]
    opened = []
    for source in named:
        data = find_data(source.path)
        log_files(data, source.split)
        passes = Passes(source=source, data=data, config=config, job=job, check=check)
        _ = passes.work  # what the first row shows is wrong before anything starts
        opened.append(passes)
    return opened


@dataclass(frozen=True)
class Passes(Generic[T]):
    """Passes over one data set."""

    source: SourceConfig
    data: LocalData | HubData
    config: DataConfig
    job: Tokenization[T]
    check: Check[T] | None

    @property
    def work(self) -> RowWork[T]:
        """What happens to each row."""
        return RowWork(format_name=self.opening[0].name, job=self.job)

    @cached_property
    def opening(self) -> tuple[RowFormat, str]:
        """The format that the first rows show, and the same in words, with its columns.

        Raises:
            DataError: There are no rows, the job cannot take them, or their number would have to be
                known.
        """
        self._check_split()
        report = RowReport(data=self.source.path)
        format_, _ = recognised(self._rows(0), self.source, report, self.job, skip=self._skips)
        if format_.group is not None:
            raise DataError(
                f"{self.source.path!r} has {format_.name} rows, several of which are one example: "
                "a stream takes rows one by one; set data.streaming: false"
            )
        return format_, report.format

    def look(self, num_rows: int) -> tuple[pa.Table, RowReport]:
        """The first examples, at least as many where there are, and counts of what was read.

        Raises:
            DataError: See `read`.
        """
        report = self._report()
        tables = [self.job.kind.schema.empty_table()]
        for part in self._counted(0, report):
            tables.append(part.table)
            if report.num_kept >= num_rows:
                break
        else:
            report.close(" in a pass")
        return pa.concat_tables(tables).combine_chunks(), report

    def read(self, start: int) -> Iterator[Converted]:
        """The rows of one pass from a number on; counts go to the log when it ends.

        Raises:
            DataError: A malformed row that is not to be skipped, or nothing is left of all rows.
        """
        report = self._report()
        told_at = 1_000
        for part in self._counted(start, report):
            if report.num_read >= told_at:
                report.tell(" so far")
                told_at *= 10
            yield part
        if start == 0:
            report.close(" in this pass")
        else:
            report.tell(f" in the rest of this pass, from row {start} on")

    def decided_by(self) -> Iterator[str]:
        """What decides which examples there are; of files names and sizes, for they are large."""
        yield from decided_by(self.source, self.config, self.job)
        if isinstance(self.data, LocalData):
            for split, files in self.data.named_by(self.source.split).items():
                for file in files:
                    yield f"{split} {file.path.name} {file.path.stat().st_size}"

    def _check_split(self) -> None:
        """Refuse what takes the number of all rows to tell."""
        split = self.source.split
        if isinstance(self.data, HubData):
            is_known = "[" not in split
        else:
            is_known = not any(range_.needs_count for range_ in parse_split(split))
        if not is_known:
            raise DataError(
                f"a stream has no shares and no end to count from, got the split {split!r} of "
                f"{self.source.path!r}: take skip and limit"
            )

    def _rows(self, start: int) -> Iterator[Row | RowError]:
        return read_rows(
            self.source,
            data=self.data,
            separator=self.config.separator,
            start=start,
            streaming=self.config.streaming,
        )

    def _report(self) -> RowReport:
        return RowReport(data=self.source.path, format=self.opening[1])

    def _counted(self, start: int, report: RowReport) -> Iterator[Converted]:
        # Processes only where they are asked for: a step takes few rows.
        converted = convert(self._rows(start), self.work, num_workers=self.config.workers or 1)
        for part in map(self._checked, converted):
            report.count(part, skip=self._skips)
            yield part

    @property
    def _skips(self) -> bool:
        return self.config.on_bad_row == "skip"

    def _checked(self, part: Converted) -> Converted:
        """The same without examples in which the check finds something wrong."""
        if self.check is None or not len(part.table):
            return part
        kind = self.job.kind
        examples = [kind.record(part.table.slice(row, 1)) for row in range(len(part.table))]
        faults = self.check(examples)
        errors = [
            RowError(str(getattr(example, kind.id_name)), "rewards cannot score it", fault)
            for example, fault in zip(examples, faults, strict=True)
            if fault is not None
        ]
        fine = pa.array([fault is None for fault in faults])
        return replace(part, table=part.table.filter(fine), errors=[*part.errors, *errors])
