"""How long a user waits before anything is trained, over how long that may take.

    python -m benchmarks.start_up help       # `rlhf-ray --help`: 1 second
    python -m benchmarks.start_up nothing    # `rlhf-ray grpo` to its first step: 45
    python -m benchmarks.start_up pool       # the same on a pool that is up: 5

Each is a command in a new process, with files that were read before. `pairs` has the seconds of
each try, and beside them those of `python -c "import torch"` just before, which say how fast the
machine was. Prints JSON; ends with 1 where the median takes longer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from launch.run.signals import interrupt_when_stopped

ALLOWED_S = {"help": 1.0, "nothing": 45.0, "pool": 5.0}
TRIES = {"help": 7, "nothing": 2, "pool": 3}
COMMAND_S = 200.0
POLL_S = 0.02
POOL = "bench"
CONFIG: dict[str, Any] = {
    "total_steps": 1,
    "prompts_per_step": 4,
    "samples_per_prompt": 4,
    "rollout": {"max_new_tokens": 8, "max_num_seqs": 16, "kv_cache_gb": 0.25},
    "checkpoint": {"export": "never"},
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=ALLOWED_S)
    parser.add_argument("--pairs", type=int, default=0, help="tries")
    parser.add_argument("--quick", action="store_true", help="one try")
    options = parser.parse_args(argv)
    interrupt_when_stopped()
    tries = options.pairs or (1 if options.quick else TRIES[options.case])
    result = start_up(options.case, tries=tries)
    print(json.dumps(result, indent=1))
    return int(not result["holds"])


def start_up(case: str, *, tries: int) -> dict[str, Any]:
    """So many tries of one case, after one that is not counted."""
    with tempfile.TemporaryDirectory(prefix="bench-start-") as temporary:
        folder = Path(temporary)
        with CASES[case](folder) as once:
            once(0)
            pairs = [
                {"import_torch_s": round(_import_s(), 2), "seconds": round(once(number), 2)}
                for number in range(1, tries + 1)
            ]
    ratio = median(pair["seconds"] for pair in pairs) / ALLOWED_S[case]
    return {"ratio": round(ratio, 3), "goal": 1.0, "holds": ratio <= 1.0, "pairs": pairs}


@contextmanager
def _help(folder: Path) -> Iterator[Callable[[int], float]]:
    yield lambda number: _timed(["-m", "launch.cli", "--help"])


@contextmanager
def _nothing(folder: Path) -> Iterator[Callable[[int], float]]:
    file = _write_job(folder)
    yield lambda number: _first_step_s(file, folder / f"run-{number}", {})


@contextmanager
def _standing(folder: Path) -> Iterator[Callable[[int], float]]:
    """On a pool that other jobs have used."""
    file = _write_job(folder)
    registry = {"TMPDIR": str(folder), "RAY_TMPDIR": "/tmp"}  # of pools; of sockets
    try:
        _run(["pool", "up", str(file), "--job", "grpo", "--name", POOL], registry)
        yield lambda number: _first_step_s(
            file, folder / f"run-{number}", registry, "--ray.pool", POOL
        )
    finally:
        _run(["pool", "down", "--name", POOL], registry)


CASES = {"help": _help, "nothing": _nothing, "pool": _standing}


def _write_job(folder: Path) -> Path:
    """GRPO of a small random model."""
    from benchmarks.against_trl import texts
    from benchmarks.against_trl.cases import REWARD, model_at
    from benchmarks.against_trl.models import save_model, word_tokenizer

    model = save_model(folder / "model", word_tokenizer())
    rows = texts.write(folder / "rows.jsonl", texts.prompts(8, 16))
    file = folder / "grpo.json"
    config = {**CONFIG, "data": {"path": str(rows)}}
    config["policy"] = {"model": model_at(model)}
    config["reward"] = {"functions": [{"path": REWARD}]}
    file.write_text(json.dumps(config))
    return file


def _first_step_s(file: Path, run: Path, environment: Mapping[str, str], *more: str) -> float:
    """From the command to the line of the first step.

    Raises:
        RuntimeError: There is none.
    """
    command = [sys.executable, "-m", "launch.cli", "grpo", str(file), "--run-dir", str(run), *more]
    began_s = time.monotonic()
    with (run.with_suffix(".log")).open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | environment
        )
    metrics, seconds = run / "metrics.jsonl", 0.0
    while process.poll() is None and time.monotonic() - began_s < COMMAND_S:
        if not seconds and metrics.exists() and '"step": 1' in metrics.read_text():
            seconds = time.monotonic() - began_s
        time.sleep(POLL_S)
    process.kill()
    if process.wait() or not seconds:
        said = run.with_suffix(".log").read_text()[-2000:]
        raise RuntimeError(f"no first step, or status {process.returncode}: {said}")
    return seconds


def _import_s() -> float:
    return _timed(["-c", "import torch"])


def _timed(arguments: Sequence[str]) -> float:
    began_s = time.monotonic()
    subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=COMMAND_S
    )
    return time.monotonic() - began_s


def _run(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """A command to its end.

    Raises:
        RuntimeError: It failed; with what it said.
    """
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"rlhf-ray {' '.join(arguments)}: {done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
