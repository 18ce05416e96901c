"""A place that metrics go, which keeps everything."""

from __future__ import annotations

from rlhf_ray.metrics.log import Record, RewindableSink, Table


class FakeSink:
    """A `RewindableSink`.

    Attributes:
        closed: Whether the run failed, once it is over.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.tables: list[Table] = []
        self.closed: bool | None = None

    @property
    def steps(self) -> dict[int, dict[str, float]]:
        """Metrics by step."""
        return {record.step: dict(record.metrics) for record in self.records}

    def log(self, record: Record) -> None:
        self.records.append(record)

    def table(self, table: Table) -> None:
        self.tables.append(table)

    def rewind(self, last_step: int) -> None:
        self.records = [record for record in self.records if record.step <= last_step]
        self.tables = [table for table in self.tables if table.step <= last_step]

    def close(self, *, failed: bool) -> None:
        self.closed = failed


def _(fake: FakeSink) -> RewindableSink:
    return fake
