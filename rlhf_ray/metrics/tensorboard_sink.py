"""TensorBoard: `tensorboard --logdir runs` shows every run by its folder."""

from __future__ import annotations

from pathlib import Path

from rlhf_ray.metrics.log import Record, Table


class TensorBoardSink:
    """Writes event files below `run_dir/tensorboard`."""

    def __init__(self, run_dir: Path, *, first_step: int) -> None:
        """Begin at `first_step`; TensorBoard hides what an earlier attempt wrote from there on."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(
            logdir=str(run_dir / "tensorboard"),
            purge_step=first_step,
            filename_suffix=f".from_{first_step}",  # the rest of the name is host and second
        )

    def log(self, record: Record) -> None:
        """Write one step, readable at once."""
        for name, value in record.metrics.items():
            self._writer.add_scalar(name, value, record.step)
        self._writer.flush()

    def table(self, table: Table) -> None:
        """Write a table as text, `samples/<name>`."""
        rows = [table.columns, ["---"] * len(table.columns), *table.rows]
        text = "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)
        self._writer.add_text(f"samples/{table.name}", text, table.step)

    def close(self, *, failed: bool) -> None:
        """Close the files."""
        self._writer.close()


def _cell(cell: object) -> str:
    """One line of Markdown that stays in its column."""
    return str(cell).replace("|", "\\|").replace("\n", "<br>")
