"""The driver's screen: one progress bar, one table a step; plain lines where no one looks."""

from __future__ import annotations

import itertools

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from rlhf_ray.metrics.log import Record, Table

# Shown beside the bar and in plain lines, as far as the job has them.
HEADLINES = (
    "rollout/reward_mean",
    "eval/reward_mean",
    "policy/kl_ref",
    "mismatch/logprob_abs_max",
    "sft/loss",
    "rm/loss",
    "dpo/loss",
    "eval/loss",
    "eval/accuracy",
    "eval/rewards/accuracies",
    "time/step",
)


class ConsoleSink:
    """Shows progress towards `total_steps`."""

    def __init__(
        self, *, job: str, total_steps: int, first_step: int = 0, console: Console | None = None
    ) -> None:
        """Show the bar; `first_step` is the step that a resumed run goes on from."""
        self._console = console or Console()
        self._total = total_steps
        self._first = first_step
        self._first_time_s: float | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[headline]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._bar = self._progress.add_task(
            job, total=total_steps, completed=first_step, headline=""
        )
        self._progress.start()

    def log(self, record: Record) -> None:
        """Advance the bar and show the step."""
        if self._first_time_s is None:
            self._first_time_s, self._first = record.time_s, record.step
        if not self._console.is_terminal:
            self._console.print(Text(self._line(record)), soft_wrap=True)
            return
        headline = "  ".join(_headlines(record)[:2])
        self._progress.update(self._bar, completed=record.step, headline=headline)
        self._console.print(_grid(record))

    def table(self, table: Table) -> None:
        """Print rows, each cell cut to a few lines."""
        grid = RichTable(title=f"{table.name}, step {table.step}", show_lines=True)
        for column in table.columns:
            grid.add_column(column, overflow="fold")
        for row in table.rows:
            grid.add_row(*(Text(_cell(cell)) for cell in row))
        self._console.print(grid)

    def close(self, *, failed: bool) -> None:
        """Take the bar away."""
        self._progress.stop()

    def _line(self, record: Record) -> str:
        """`step 12/60  left 4:10  rollout/reward_mean 0.412 ...`."""
        parts = [f"step {record.step}/{self._total}"]
        if self._first_time_s is not None and record.step > self._first:
            a_step_s = (record.time_s - self._first_time_s) / (record.step - self._first)
            minutes, seconds = divmod(round(a_step_s * (self._total - record.step)), 60)
            parts.append(f"left {minutes}:{seconds:02d}")
        return "  ".join([*parts, *_headlines(record)])


def _headlines(record: Record) -> list[str]:
    shown = (name for name in HEADLINES if name in record.metrics)
    return [f"{name} {record.metrics[name]:.4g}" for name in shown]


def _grid(record: Record) -> RichTable:
    """A row for each group of names."""
    grid = RichTable(
        title=f"step {record.step}",
        title_justify="left",
        box=None,
        show_header=False,
        pad_edge=False,
    )
    groups = itertools.groupby(record.metrics, key=lambda name: name.partition("/")[0])
    for group, names in groups:
        values = (f"{name.partition('/')[2]} {record.metrics[name]:.4g}" for name in names)
        grid.add_row(Text(group, style="bold"), Text("   ".join(values)))
    return grid


def _cell(cell: object, longest: int = 400) -> str:
    text = f"{cell:.4g}" if isinstance(cell, float) else str(cell)
    return text if len(text) <= longest else text[:longest] + " ..."
