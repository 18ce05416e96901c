"""`spans.jsonl`, one object a span; what does not fit any more goes to `spans.1.jsonl`.

Like `metrics.jsonl` it goes back with a run that does steps again. It is no record of the run but a
help: it is not synced to the disk, and keeps the last steps where the run is long.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.disk import room_for
from rlhf_ray.metrics.spans import ProcessSpans, Span

# How a line begins: its step is found without reading all of it.
_STEP = b'{"step": '


@dataclass(frozen=True, kw_only=True)
class WrittenSpan:
    """A line of the file.

    Attributes:
        step: After which it was collected; 0 before the first one.
        role: Whose, with the process's rank and machine: see `ProcessSpans`.
        span: By nanoseconds since the epoch, as the driver has it.
    """

    step: int
    role: str
    rank: int
    node: str
    span: Span


class SpansFile:
    """Appends to the run's folder; both files together have at most so many bytes."""

    def __init__(self, run_dir: Path, *, most_bytes: int) -> None:
        """Open the file; call `rewind` before where the run goes on."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self._paths, self._most_bytes = _paths(run_dir), most_bytes
        self._file = self._paths[-1].open("ab")
        # Monotonic clocks begin anywhere, and those of two processes of a run need not agree.
        self._epoch_ns = time.time_ns() - time.monotonic_ns()

    def write(self, step: int, processes: Sequence[ProcessSpans]) -> None:
        """Append what was collected after a step, which is not before the last one's."""
        text = "".join(self._line(step, of, one) for of in processes for one in of.spans)
        with room_for("the timeline", self._paths[-1]):
            self._file.write(text.encode())
            self._file.flush()
        if self._file.tell() > self._most_bytes // 2:
            self._file.close()
            os.replace(self._paths[-1], self._paths[0])
            self._file = self._paths[-1].open("ab")

    def _line(self, step: int, of: ProcessSpans, one: Span) -> str:
        row = {
            "step": step,
            "role": of.role,
            "rank": of.rank,
            "node": of.node,
            "operation": one.operation,
            "start_s": round((one.start_ns + self._epoch_ns) / 1e9, 6),
            "seconds": round(one.seconds, 6),
            "labels": one.labels,
        }
        return json.dumps(row, ensure_ascii=False) + "\n"

    def rewind(self, last_step: int) -> None:
        """Take back everything after `last_step`, and a line that a crash tore."""
        self._file.close()
        for path in self._paths:
            if path.exists():
                os.truncate(path, _bytes_until(path, last_step))
        self._file = self._paths[-1].open("ab")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_spans(run_dir: Path, *, first_step: int, last_step: int) -> Iterator[WrittenSpan]:
    """What a run's folder has of some steps, in the order in which it was written."""
    for path in filter(Path.exists, _paths(run_dir)):
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n") and first_step <= _step_of(line) <= last_step:
                    yield _read(line)


def _read(line: bytes) -> WrittenSpan:
    row = json.loads(line)
    start_ns = round(row["start_s"] * 1e9)
    end_ns = start_ns + round(row["seconds"] * 1e9)
    one = Span(operation=row["operation"], start_ns=start_ns, end_ns=end_ns, labels=row["labels"])
    return WrittenSpan(
        step=row["step"], role=row["role"], rank=row["rank"], node=row["node"], span=one
    )


def _paths(run_dir: Path) -> tuple[Path, Path]:
    """The older file and the newer one."""
    return run_dir / "spans.1.jsonl", run_dir / "spans.jsonl"


def _bytes_until(path: Path, last_step: int) -> int:
    num_bytes = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or _step_of(line) > last_step:
                break
            num_bytes += len(line)
    return num_bytes


def _step_of(line: bytes) -> int:
    return int(line[len(_STEP) : line.index(b",")])
