"""`metrics.jsonl`, one object a step, and `samples/step_00000010.jsonl`, one object a row.

A line is on the disk before the next step begins. A resumed run first takes back the steps that it
will do again, so that no step stands twice.
"""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any, TextIO

from rlhf_ray.disk import room_for
from rlhf_ray.metrics.log import Cell, Record, Table

logger = logging.getLogger(__name__)


class JsonlSink:
    """Appends to the run directory. NaN and infinity, which JSON lacks, are written as null."""

    def __init__(self, run_dir: Path) -> None:
        """Open `run_dir/metrics.jsonl`; call `rewind` before where the run goes on."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self._run_dir = run_dir
        self._samples, self._path = run_dir / "samples", run_dir / "metrics.jsonl"
        self._file = self._path.open("a", encoding="utf-8")

    def log(self, record: Record) -> None:
        """Write one line."""
        row = {"step": record.step, "time_s": round(record.time_s, 3), **record.metrics}
        with room_for("metrics", self._path):
            self._file.write(_line(row))
            _sync(self._file)

    def table(self, table: Table) -> None:
        """Append to the step's file; the table's name stands in every row."""
        self._samples.mkdir(exist_ok=True)
        path = _samples_file(self._samples, table.step)
        with room_for("samples", path), path.open("a", encoding="utf-8") as file:
            for row in table.rows:
                cells = dict(zip(table.columns, row, strict=True))
                file.write(_line({"step": table.step, "table": table.name, **cells}))
            _sync(file)

    def rewind(self, last_step: int) -> None:
        """Take back everything after `last_step`."""
        self._file.close()
        rewind(self._run_dir, last_step)
        self._file = self._path.open("a", encoding="utf-8")

    def close(self, *, failed: bool) -> None:
        """Close the file."""
        self._file.close()


def rewind(run_dir: Path, last_step: int) -> float:
    """Take back everything after `last_step`; returns the seconds of running until then.

    A line that a crash tore, or a disk damaged, is dropped as well, which is logged.
    """
    path = run_dir / "metrics.jsonl"
    kept = [row for row in _rows(path) if row["step"] <= last_step]
    if path.exists():
        temporary = path.with_suffix(".jsonl.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(_line(row) for row in kept)
            _sync(file)
        temporary.replace(path)
    for samples in (run_dir / "samples").glob("step_*.jsonl"):
        if samples > _samples_file(run_dir / "samples", last_step):
            samples.unlink()
    return float(kept[-1]["time_s"]) if kept else 0.0


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines, but for those that are torn or damaged."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                row = json.loads(line)
                int(row["step"]), float(row["time_s"])
            except (ValueError, LookupError, TypeError) as error:
                logger.warning("%s: line %d is damaged and left out: %s", path, number, error)
            else:
                rows.append(row)
    return rows


def _samples_file(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.jsonl"


def _line(row: dict[str, Any]) -> str:
    finite: dict[str, Cell] = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


def _sync(file: TextIO) -> None:
    file.flush()
    os.fsync(file.fileno())
