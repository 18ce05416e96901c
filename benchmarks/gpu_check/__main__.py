"""The command line of `benchmarks.gpu_check`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

import benchmarks.gpu_check
from benchmarks.gpu_check.checks import CHECKS
from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.records import Check, Outcome, overall
from benchmarks.gpu_check.report import line_of, show_failures, table_of, write_json
from benchmarks.gpu_check.runner import Runner
from launch.run.signals import interrupt_when_stopped

TOTAL_S = 900.0
WIDTH = 120  # of what goes to a file
INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run checks; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=benchmarks.gpu_check.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [check.name for check in CHECKS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="CHECK", default=names)
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    parser.add_argument("--json", type=Path, default=None, help="default: runs/gpu-check.json")
    parser.add_argument("--total-s", type=float, default=TOTAL_S, help="for all together")
    options = parser.parse_args(arguments)
    interrupt_when_stopped()
    scale = "rehearsal" if options.rehearse else "card"
    default = Path("runs", "gpu-check.json" if scale == "card" else "gpu-check-rehearsal.json")
    checks = [check for check in CHECKS if check.name in options.only]
    return run(checks, scale=scale, file=options.json or default, total_s=options.total_s)


def run(checks: Sequence[Check], *, scale: str, file: Path, total_s: float) -> int:
    """Run checks, write the file after each, show a table at the end; returns the exit status."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    machine = Machine.here()
    started, started_s = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    order = {check.name: number for number, check in enumerate(checks)}
    outcomes: list[Outcome] = []

    def told() -> dict[str, Any]:
        return {"machine": machine, "scale": scale, "seconds": time.monotonic() - started_s}

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        outcomes.sort(key=lambda one: order[one.check])
        write_json(file, outcomes, started=started, **told())
        if outcome.applies:
            console.print(
                f"{outcome.check}: {outcome.verdict} ({outcome.seconds:.0f} s) "
                f"{escape(outcome.reason)}"
            )

    status = 0
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as folder:
        runner = Runner(machine, folder=Path(folder), scale=scale, total_s=total_s, tell=tell)
        try:
            runner.run(checks)
        except KeyboardInterrupt:
            status = INTERRUPTED
    show_failures(console, outcomes)
    console.print(table_of(outcomes, checks))
    if scale == "card" and not machine.cards:
        console.print("No NVIDIA GPU is here, so nothing was checked; --rehearse runs on the CPU.")
    console.print(f"written: {file}")
    print(line_of(outcomes, **told()))
    return status or int(overall(outcomes) == "failed")


if __name__ == "__main__":
    sys.exit(main())
