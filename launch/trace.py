"""The command `rlhf-ray trace RUN_DIR`: what every process did, as a file that Perfetto opens.

For example `rlhf-ray trace runs/first --steps 10:20`, then "Open trace file" on ui.perfetto.dev.
"""

from __future__ import annotations

import gzip
import json
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from rlhf_ray.errors import ConfigError


def main(arguments: Sequence[str]) -> int:
    """Write the trace of a run's folder, and print where the time of its steps went; returns 0.

    Raises:
        ConfigError: The folder has no spans of these steps.
    """
    options = parser().parse_args(arguments)
    first, last = options.steps

    from launch.tables.spans import print_spans
    from rlhf_ray.metrics.spans_file import read_spans
    from rlhf_ray.metrics.trace import trace_events

    spans = list(read_spans(options.run_dir, first_step=first, last_step=last))
    if not spans:
        raise ConfigError(
            f"{options.run_dir} has no spans of steps {first} to {last}: a run writes spans.jsonl "
            "unless spans_mb is 0, and the newest steps stay in it"
        )
    output: Path = options.output or options.run_dir / "trace.json"
    opened = gzip.open if output.suffix == ".gz" else open
    with opened(output, "wt", encoding="utf-8") as file:
        json.dump({"traceEvents": trace_events(spans), "displayTimeUnit": "ms"}, file)
    print_spans(spans)
    print(f"{output}: open it on https://ui.perfetto.dev or in chrome://tracing")
    return 0


def parser() -> ArgumentParser:
    """What the command line takes."""
    parser = ArgumentParser(
        prog="rlhf-ray trace",
        description="What every process of a run did when, as a file that Perfetto opens.",
        allow_abbrev=False,
    )
    parser.add_argument("run_dir", type=Path, help="folder of the run")
    parser.add_argument(
        "--steps",
        type=_steps,
        default=(0, 2**62),
        metavar="FIRST:LAST",
        help="of the run, both included; either may be left out (default: all)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="to write; compressed where it ends in .gz (default: RUN_DIR/trace.json)",
    )
    return parser


def _steps(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not all(not part or part.isdigit() for part in (first, last)) or not (first or colon):
        raise ArgumentTypeError(f"must be a step, or FIRST:LAST, got {text!r}")
    begin = int(first or 0)
    return begin, int(last or 2**62) if colon else begin
