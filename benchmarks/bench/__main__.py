"""Run benchmarks, keep their results, and write the table of `benchmarks/README.md`.

    make bench
    make bench BENCH_ARGS="--only trl-grpo trl-dpo"
    make bench BENCH_ARGS=--quick     # whether all of it runs; nothing is kept

Each is a process of its own, with nothing beside it. One that fails says so, and the others go on.
The exit status is 1 where one failed or misses its goal.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.bench.report import Result, read, result_in, table_of, write, write_table
from benchmarks.bench.table import BENCHMARKS, Benchmark

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/latest.json"
REHEARSAL = ROOT / "runs/bench-quick.json"
PAGE = ROOT / "benchmarks/README.md"
LAST_LINES = 25
CLEAR_UP_S = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [one.name for one in BENCHMARKS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", default=names)
    parser.add_argument("--quick", action="store_true", help="small, and not kept")
    options = parser.parse_args(argv)
    chosen = [one for one in BENCHMARKS if one.name in options.only]
    file = REHEARSAL if options.quick else RESULTS
    return run(chosen, file=file, page=None if options.quick else PAGE, quick=options.quick)


def run(benchmarks: Sequence[Benchmark], *, file: Path, page: Path | None, quick: bool) -> int:
    """Run them; results of others in the file stay as they are."""
    results = read(file)
    for one in benchmarks:
        began_s = time.monotonic()
        results[one.name] = result = measured(one, quick=quick)
        write(file, results, BENCHMARKS)
        print(f"{one.name}: {_line(result)} ({time.monotonic() - began_s:.0f} s)", flush=True)
    if page is not None:
        write_table(page, table_of(results, BENCHMARKS))
    print(f"written: {file}")
    return int(not all(results[one.name]["holds"] for one in benchmarks))


def _line(result: Result) -> str:
    if "error" in result:
        return f"failed: {result['error']}"
    holds = "holds" if result["holds"] else "missed"
    return f"{result['ratio']:.3g}, goal {result['goal']:g}: {holds}"


def measured(one: Benchmark, *, quick: bool) -> Result:
    """What a benchmark printed, or why it failed."""
    command = [sys.executable, "-m", *one.command, *(one.quick if quick else ())]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=one.budget_s)
            return result_in(said)
        except subprocess.TimeoutExpired:
            return failed(f"not done after {one.budget_s:g} s")
        except ValueError as error:
            log.seek(0)
            lines = log.read().splitlines()[-LAST_LINES:]
            print("\n".join(lines), file=sys.stderr, flush=True)
            return failed(lines[-1] if process.returncode and lines else str(error))
        finally:
            _end(process)


def failed(why: str) -> Result:
    """A result that is none."""
    return {"ratio": None, "goal": None, "holds": False, "pairs": [], "error": why}


def _end(process: subprocess.Popen[str]) -> None:
    """End it with what it started, where that runs on; it may clear up first."""
    if process.poll() is not None:
        return
    left = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(CLEAR_UP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for each in psutil.wait_procs(left, timeout=1.0)[1]:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
