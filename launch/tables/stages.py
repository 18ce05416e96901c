"""What each stage of a pipeline brought: the metric that tells most, before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.config.tools.stages import Stage
from rlhf_ray.jobs.table import JOBS


def print_table(stages: Sequence[Stage], seconds: Mapping[str, float]) -> None:
    """One line a stage."""
    import rich
    from rich.table import Table

    table = Table(title="what the stages brought")
    for column in ("stage", "job", "metric", "start", "end", "seconds"):
        is_number = column in ("start", "end", "seconds")
        table.add_column(column, justify="right" if is_number else "left")
    for stage in stages:
        took = seconds.get(stage.name)
        table.add_row(
            stage.name,
            stage.job,
            *first_and_last(Path(stage.config.run_dir) / "metrics.jsonl", JOBS[stage.job].headline),
            "earlier" if took is None else f"{took:.0f}",
        )
    rich.print(table)


def first_and_last(path: Path, names: Sequence[str]) -> tuple[str, str, str]:
    """Of the first of these metrics that a run logged: name, first and last value; else empty."""
    lines = path.read_text().splitlines() if path.is_file() else []
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for name in names:
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            return name, f"{values[0]:.4g}", f"{values[-1]:.4g}"
    return "", "", ""
