"""TensorBoard: `tensorboard --logdir runs` shows every run by its folder.

Events are written by tensorboardX's own parts: its `SummaryWriter` leaves the last ones in a queue,
whatever is flushed, and they are lost where the process is killed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rlhf_ray.metrics.log import Record, Table


class TensorBoardSink:
    """Writes event files below `run_dir/tensorboard`."""

    def __init__(self, run_dir: Path, *, first_step: int) -> None:
        """Begin at `first_step`; TensorBoard hides what an earlier attempt wrote from there on."""
        self._folder = run_dir / "tensorboard"
        self._begin(first_step)

    def log(self, record: Record) -> None:
        """Write one step; it is on the disk when this returns."""
        from tensorboardX.summary import scalar

        for name, value in record.metrics.items():
            self._write(record.step, summary=scalar(name, value))
        self._file.flush()

    def table(self, table: Table) -> None:
        """Write a table as text, `samples/<name>`."""
        from tensorboardX.summary import text

        rows = [table.columns, ["---"] * len(table.columns), *table.rows]
        lines = "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)
        self._write(table.step, summary=text(f"samples/{table.name}", lines))
        self._file.flush()

    def rewind(self, last_step: int) -> None:
        """Hide what was written after `last_step`."""
        self._file.close()
        self._begin(last_step + 1)

    def close(self, *, failed: bool) -> None:
        """Close the file."""
        self._file.close()

    def _begin(self, first_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._folder.mkdir(parents=True, exist_ok=True)
        # Files are read in the order of their names, which have of the time only the second.
        suffix = f".{time.time_ns()}.from_{first_step}"
        self._file = EventsWriter(str(self._folder / "events"), suffix)
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write_event(Event(step=step, wall_time=time.time(), **content))


def _cell(cell: object) -> str:
    """One line of Markdown that stays in its column."""
    return str(cell).replace("|", "\\|").replace("\n", "<br>")
