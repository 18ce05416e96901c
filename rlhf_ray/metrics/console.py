"""The driver's screen: a table with a row a step, or a plain line a step where no one looks.

Nothing is drawn over, so that other messages may come between and scrolling back shows all of it.
The table has its heads again and again:

```text
step   reward              KL  entropy   length  mismatch  tokens/s    left
4/30    0.250 +0.12    0.0268     1.47     64.0   1.0e-05     3,494    0:41
      held out: reward 0.250 +0.25, length 64.0
      ! most responses are cut off: rollout/truncated_share 0.98 is above 0.5 ...
```
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median

import rich
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from rlhf_ray.metrics.log import Record, Table
from rlhf_ray.metrics.names import COLUMNS, LINE, Column, held_out_names

# The time that is left is estimated from so many; with their median, evaluations do not count.
MEASURED_STEPS = 20
# Seconds between two rows, so that quick steps can be read.
ROW_S = 1.0
# Rows below one head.
HEAD_EVERY = 20
# Characters: of a value, of a change beside it, of the time that is left, between columns.
VALUE, CHANGE, LEFT, GAP = 7, 6, 6, 2

NOT_FINITE = "not finite: "


class ConsoleSink:
    """Shows the way to `total_steps`."""

    def __init__(self, *, total_steps: int, console: Console | None = None) -> None:
        """Show it on a console, by default on the process's own."""
        self._console = console or rich.get_console()
        self._total = total_steps
        self._last: Record | None = None
        self._warned: Mapping[str, str] = {}
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
            for text in self._new_warnings(record):
                self._console.print(Text(f"! step {record.step}: {text}"), soft_wrap=True)
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

    def _new_warnings(self, record: Record) -> list[str]:
        """Those that the step before had not, and each time those of values that are not finite."""
        before, self._warned = self._warned, warnings_of(record)
        return [text for name, text in self._warned.items() if name not in before or _is_red(text)]

    def _line(self, record: Record, left: str) -> str:
        """`step 12/60  left 4:10  rollout/reward_mean 0.412 ...`."""
        parts = [f"step {record.step}/{self._total}", *([f"left {left}"] if left else [])]
        shown = (name for name in LINE if name in record.metrics)
        return "  ".join([*parts, *(f"{name} {record.metrics[name]:.4g}" for name in shown)])


def warnings_of(record: Record) -> dict[str, str]:
    """What is to be said of a step's metrics, by their names."""
    not_finite = {
        name: f"{NOT_FINITE}{name} {value:g}"
        for name, value in record.metrics.items()
        if not math.isfinite(value)
    }
    return {**record.warnings, **not_finite}


def _cell(cell: object, longest: int = 400) -> str:
    text = f"{cell:.4g}" if isinstance(cell, float) else str(cell).strip()
    return text if len(text) <= longest else text[:longest] + " ..."


class StepTable:
    """Has as many columns as fit, of those whose metrics a run logs."""

    def __init__(self, *, total_steps: int, width: int) -> None:
        """Args: steps of the job, and characters of a line."""
        self._total = total_steps
        self._step_width = max(len("step"), len(self._step(total_steps)))
        self._room = width - self._step_width - GAP - LEFT
        self._columns: Sequence[Column] = ()
        self._num_rows = 0  # below the last head
        self._shown: Record | None = None
        self._evaluated: Mapping[str, float] = {}
        self._warned: Mapping[str, str] = {}

    def begin(self) -> None:
        """Have a head above the next row: something else was printed."""
        self._num_rows = 0

    def lines(self, record: Record, *, left: str) -> list[Text]:
        """Row, evaluation and warnings of a step; none where the last row is too fresh.

        A step is shown in any case if it is evaluated or the last, or a warning is new.
        """
        metrics, warnings = record.metrics, warnings_of(record)
        is_evaluated = any(name.startswith("eval/") for name in metrics)
        is_new = not warnings.keys() <= self._warned.keys() or any(map(_is_red, warnings.values()))
        last = self._shown
        is_due = last is None or not last.step or record.time_s - last.time_s >= ROW_S
        if not (is_due or is_new or is_evaluated or record.step == self._total):
            return []
        lines = self._row(record, left, warnings) if record.step else []
        below = self._held_out(record) if is_evaluated else []
        below += self._warnings(warnings)
        self._shown, self._warned = record, warnings
        return lines + [Text(" " * (self._step_width + GAP)).append_text(text) for text in below]

    def _row(self, record: Record, left: str, warnings: Mapping[str, str]) -> list[Text]:
        lines = []
        columns = self._fitting(record.metrics)
        if columns != self._columns or self._num_rows % HEAD_EVERY == 0:
            titles = [Text(_title(column)) for column in columns]
            lines.append(self._joined("step", titles, "left"))
            lines[0].stylize("bold")
            self._columns, self._num_rows = columns, 0
        cells = [self._cell(column, record.metrics, warnings) for column in columns]
        self._num_rows += 1
        return [*lines, self._joined(self._step(record.step), cells, left)]

    def _fitting(self, metrics: Mapping[str, float]) -> list[Column]:
        """Those of the step and of the steps before, as far as they fit."""
        columns, room = [], self._room
        for column in COLUMNS:
            room_then = room - GAP - len(_title(column))
            is_logged = _first(column.names, metrics) is not None
            says_more = not column.beside or column.beside in metrics
            if ((is_logged and says_more) or column in self._columns) and room_then >= 0:
                columns.append(column)
                room = room_then
        return columns

    def _cell(
        self, column: Column, metrics: Mapping[str, float], warnings: Mapping[str, str]
    ) -> Text:
        """Value, and change since the step shown before."""
        name = _first(column.names, metrics)
        if name is None:
            return Text(" " * len(_title(column)))
        width = len(_title(column)) - column.has_change * (1 + CHANGE)
        cell = Text(number(metrics[name]).rjust(width))
        if name in warnings:
            cell.stylize(_style(warnings[name]))
        if column.has_change:
            before = self._shown.metrics if self._shown is not None else {}
            cell.append(" " + change(before.get(name), metrics[name]).ljust(CHANGE), style="dim")
        return cell

    def _held_out(self, record: Record) -> list[Text]:
        """What the evaluation found, and how it has changed since the one before."""
        told = []
        for column in COLUMNS:
            name = _first(held_out_names(column), record.metrics)
            if name is not None:
                value = record.metrics[name]
                changed = change(self._evaluated.get(name), value) if column.has_change else ""
                told.append(f"{column.title} {number(value)} {changed}".strip())
        self._evaluated = record.metrics
        when = "held out" if record.step else "held out, before training"
        return [Text(f"{when}: {', '.join(told)}", style="cyan")] if told else []

    def _warnings(self, warnings: Mapping[str, str]) -> list[Text]:
        """A line each; one that was there in the row before is said again below each head."""
        return [
            Text(f"! {text}", style=_style(text))
            for name, text in warnings.items()
            if name not in self._warned or _is_red(text) or self._num_rows == 1
        ]

    def _joined(self, step: str, cells: Sequence[Text], left: str) -> Text:
        parts = [Text(step.rjust(self._step_width)), *cells, Text(left.rjust(LEFT))]
        return Text(" " * GAP).join(parts)

    def _step(self, step: int) -> str:
        return f"{step}/{self._total}" if self._total < 10_000 else str(step)


def number(value: float) -> str:
    """In 7 characters where it can be; `nan` and `inf` are words.

    Examples: `12,345`, `45.1`, `0.412`, `0.0041`, `1.2e-05`, `1.25M`.
    """
    size = abs(value)
    if not math.isfinite(value) or size == 0:
        return f"{value:g}"
    if size >= 1e9 or size < 1e-3:
        return f"{value:.1e}"
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 999.5:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if size >= 0.01 else f"{value:.4f}"


def change(before: float | None, now: float) -> str:
    """`+0.031`, `-1.25` or `=`; empty where there is nothing to compare."""
    if before is None or not math.isfinite(now - before):
        return ""
    difference = now - before
    if abs(difference) < 5e-4:
        return "="
    if abs(difference) < 10:
        return f"{difference:+.3f}" if abs(difference) < 0.1 else f"{difference:+.2f}"
    return ("+" if difference > 0 else "") + number(difference)


def duration(seconds: float) -> str:
    """`4:10`, `2h05m` or `3d04h`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours < 1:
        return f"{minutes}:{rest:02d}"
    if hours < 100:
        return f"{hours}h{minutes_left:02d}m"
    return f"{hours // 24}d{hours % 24:02d}h"


def _first(names: Sequence[str], metrics: Mapping[str, float]) -> str | None:
    return next((name for name in names if name in metrics), None)


def _title(column: Column) -> str:
    """As wide as its column."""
    title = column.title.rjust(VALUE)
    return title.ljust(len(title) + 1 + CHANGE) if column.has_change else title


def _style(text: str) -> str:
    return "bold red" if _is_red(text) else "yellow"


def _is_red(text: str) -> bool:
    return text.startswith(NOT_FINITE)
