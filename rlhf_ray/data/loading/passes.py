"""What one pass over a data set reads, recognises, tokenizes and counts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, TypeAlias, TypeVar

import pyarrow as pa

from rlhf_ray.config.data import DataConfig, SourceConfig
from rlhf_ray.data.errors import RowError
from rlhf_ray.data.examples.tokenization import Tokenization
from rlhf_ray.data.files.hub import HubData
from rlhf_ray.data.files.local import LocalData
from rlhf_ray.data.files.sources import find_data, log_files, read_rows
from rlhf_ray.data.formats.recognition import check_names, recognise, refusal
from rlhf_ray.data.formats.row_format import RowFormat
from rlhf_ray.data.formats.table import ROW_FORMATS
from rlhf_ray.data.loading.parallel import RowWork, convert
from rlhf_ray.data.row import Row
from rlhf_ray.data.rows.report import Converted, RowReport

logger = logging.getLogger(__name__)

T = TypeVar("T")
# Examples -> what is wrong with each, None where nothing is.
Check: TypeAlias = Callable[[Sequence[T]], Sequence[str | None]]


def sources_of(config: DataConfig) -> Sequence[SourceConfig]:
    """The data sets that a configuration names."""
    return config.sources or [config]


@dataclass(frozen=True)
class Passes(Generic[T]):
    """Passes over one data set.

    Attributes:
        source: Which of the data sets of `config`.
        data: What it names.
        job: What becomes of a row.
        check: What else may be wrong with an example; as a malformed row it is an error, or counted
            and left out.
    """

    source: SourceConfig
    data: LocalData | HubData
    config: DataConfig
    job: Tokenization[T]
    check: Check[T] | None = None

    @classmethod
    def over(
        cls,
        source: SourceConfig,
        config: DataConfig,
        job: Tokenization[T],
        check: Check[T] | None = None,
    ) -> Passes[T]:
        """Find the data; nothing is read.

        Raises:
            DataError: There are none.
        """
        data = find_data(source.path)
        log_files(data, source.split)
        return cls(source=source, data=data, config=config, job=job, check=check)

    @cached_property
    def opening(self) -> tuple[RowFormat, str]:
        """The format that the first rows show, and the same in words, with its columns.

        Raises:
            DataError: There are no rows, or the job cannot take what they show.
        """
        report = RowReport(data=self.source.path)
        for row in self._rows(0):
            try:
                if isinstance(row, RowError):
                    raise row
                if self.source.format == "auto":
                    format_ = recognise(row, kinds=self.job.kinds, what=self.job.what)
                else:
                    format_ = ROW_FORMATS[self.source.format]
            except RowError as error:
                report.leave_out(error, skip=self.skips)
                continue
            check_names(row, self.job.kinds)
            if format_.kind not in self.job.kinds:
                raise refusal(row, format_, self.job.kinds, self.job.what)
            if format_.note:
                logger.warning("%s: %s", self.source.path, format_.note)
            used = {*format_.columns, *format_.prompt_columns}
            columns = ", ".join(name for name in row.columns if name in used)
            return format_, f"{format_.name} ({columns})"
        report.close()
        raise AssertionError("a report without a row kept does not close")

    def report(self) -> RowReport:
        """Counts of a pass that begins."""
        return RowReport(data=self.source.path, format=self.opening[1])

    def counted(self, start: int, report: RowReport, *, num_workers: int) -> Iterator[Converted]:
        """The rows from a number on, counted in the report.

        Args:
            start: Rows that are passed over: they were read before.
            report: Of this pass.
            num_workers: Processes that tokenize; 0 for one a core once there are many rows.

        Raises:
            DataError: A malformed row that is not to be skipped.
        """
        format_, rows = self.opening[0], self._rows(start)
        work = RowWork(format_name=format_.name, job=self.job)
        grouped = format_.group(rows) if format_.group else rows
        for part in map(self._checked, convert(grouped, work, num_workers=num_workers)):
            report.count(part, skip=self.skips)
            yield part

    @property
    def skips(self) -> bool:
        """Whether malformed rows are counted and left out."""
        return self.config.on_bad_row == "skip"

    def _rows(self, start: int) -> Iterator[Row | RowError]:
        return read_rows(
            self.source,
            data=self.data,
            separator=self.config.separator,
            start=start,
            streaming=self.config.streaming,
        )

    def _checked(self, part: Converted) -> Converted:
        """The same without examples in which the check finds something wrong."""
        if self.check is None or not len(part.table):
            return part
        kind = self.job.kind
        examples = kind.records(part.table)
        faults = self.check(examples)
        errors = [
            RowError(str(getattr(example, kind.id_name)), "rewards cannot score it", fault)
            for example, fault in zip(examples, faults, strict=True)
            if fault is not None
        ]
        fine = pa.array([fault is None for fault in faults])
        return replace(part, table=part.table.filter(fine), errors=[*part.errors, *errors])
