"""The driver's screen: a table with a row a step, or a plain line a step where no one looks.

Nothing is drawn over, so that other messages may come between and scrolling back shows all of it.
"""

from __future__ import annotations

from collections import deque
from statistics import median

import rich
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from rlhf_ray.metrics.log import Record, Table
from rlhf_ray.metrics.names import LINE
from rlhf_ray.metrics.step_table import StepTable, duration

# The time that is left is estimated from so many; with their median, evaluations do not count.
MEASURED_STEPS = 20


class ConsoleSink:
    """Shows the way to `total_steps`."""

    def __init__(self, *, total_steps: int, console: Console | None = None) -> None:
        """Show it on a console, by default on the process's own."""
        self._console = console or rich.get_console()
        self._total = total_steps
        self._last: Record | None = None
        self._seconds: deque[float] = deque(maxlen=MEASURED_STEPS)
        self._table = StepTable(total_steps=total_steps, width=self._console.width)

    def log(self, record: Record) -> None:
        """Show the step; of quick ones a terminal has some, see `StepTable`."""
        if self._last is not None:
            self._seconds.append(record.time_s - self._last.time_s)
        self._last = record
        left = (
            duration(median(self._seconds) * (self._total - record.step)) if self._seconds else ""
        )
        if not self._console.is_terminal:
            self._console.print(Text(self._line(record, left)), soft_wrap=True)
            return
        for line in self._table.lines(record, left=left):
            self._console.print(line, soft_wrap=True)

    def table(self, table: Table) -> None:
        """Print rows, each cell cut to a few lines."""
        grid = RichTable(
            title=f"{table.name}, step {table.step}",
            title_justify="left",
            box=box.HORIZONTALS,
            border_style="dim",
            pad_edge=False,
            show_lines=True,
        )
        for column in table.columns:
            grid.add_column(column, overflow="fold")
        for row in table.rows:
            grid.add_row(*(Text(_cell(cell)) for cell in row))
        self._console.print(grid)
        self._table.begin()

    def close(self, *, failed: bool) -> None:
        """Nothing is held back."""

    def _line(self, record: Record, left: str) -> str:
        """`step 12/60  left 4:10  rollout/reward_mean 0.412 ...`."""
        parts = [f"step {record.step}/{self._total}", *([f"left {left}"] if left else [])]
        shown = (name for name in LINE if name in record.metrics)
        return "  ".join([*parts, *(f"{name} {record.metrics[name]:.4g}" for name in shown)])


def _cell(cell: object, longest: int = 400) -> str:
    text = f"{cell:.4g}" if isinstance(cell, float) else str(cell).strip()
    return text if len(text) <= longest else text[:longest] + " ..."
