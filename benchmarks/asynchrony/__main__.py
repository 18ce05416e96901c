"""What it brings and costs that sampling runs ahead of training: one figure a command.

    python -m benchmarks.asynchrony overlap       # a step against the longer of its two halves
    python -m benchmarks.asynchrony slow-prompt   # one answer 200 times as long as the others
    python -m benchmarks.asynchrony overhead      # journal and checkpoints, with and without
    python -m benchmarks.asynchrony curves        # rewards at staleness 0 to 8, as JSON and SVG

Each prints JSON and ends with 1 where what it measured does not hold. The first three take less
than six minutes on two cores with nothing else on them; `curves` takes some twenty, goes on with
what its file lacks when it is called again, and is a comparison at equal samples, so that a busy
machine does it no harm. The folder of model and stories comes from `RLHF_RAY_DATA` (default
`../shared/data`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.asynchrony.curves import LR, SEEDS, STEPS, curves
from benchmarks.asynchrony.overhead import overhead
from benchmarks.asynchrony.overlap import overlap
from benchmarks.asynchrony.runs import ROOT
from benchmarks.asynchrony.slow_prompt import slow_prompt

RESULTS = ROOT / "benchmarks/results/staleness.json"


def main() -> int:
    arguments = parsed(sys.argv[1:])
    os.chdir(ROOT)  # paths of data are relative to it
    said = measure(arguments)
    print(json.dumps(rounded(said), indent=1))
    return int(not said.get("holds", True))


def parsed(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/asynchrony"), help="of the runs")
    rows = parser.add_subparsers(dest="row", required=True)
    row = rows.add_parser("overlap")
    row.add_argument("--steps", type=int, default=6)
    row.add_argument("--turns", type=int, default=2)
    rows.add_parser("slow-prompt")
    row = rows.add_parser("overhead")
    row.add_argument("--steps", type=int, default=9)
    row.add_argument("--turns", type=int, default=2)
    row = rows.add_parser("curves")
    row.add_argument("--steps", type=int, default=STEPS)
    row.add_argument("--lr", type=float, default=LR)
    row.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    row.add_argument("--results", type=Path, default=RESULTS, help="JSON; the SVG goes beside it")
    return parser.parse_args(argv)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    folder = arguments.folder
    of_row: dict[str, Callable[[], dict[str, Any]]] = {
        "overlap": lambda: overlap(folder, steps=arguments.steps, turns=arguments.turns),
        "slow-prompt": lambda: slow_prompt(folder),
        "overhead": lambda: overhead(folder, steps=arguments.steps, turns=arguments.turns),
        "curves": lambda: curves(
            steps=arguments.steps,
            lr=arguments.lr,
            seeds=arguments.seeds,
            path=arguments.results,
            folder=folder,
        ),
    }
    return of_row[arguments.row]()


def rounded(said: Any) -> Any:
    """Numbers to four digits, wherever they stand."""
    if isinstance(said, float):
        return float(f"{said:.4g}")
    if isinstance(said, dict):
        return {key: rounded(value) for key, value in said.items()}
    return [rounded(value) for value in said] if isinstance(said, list) else said


if __name__ == "__main__":
    sys.exit(main())
