"""What the spans of a run cost, as a share of its steps.

    python -m benchmarks.spans             # of a short GRPO run
    python -m benchmarks.spans RUN_DIR

Every step's own spans are noted, taken, sent and written once more, in one process. In the run they
are so in many, side by side: what is printed is the most that they can have cost.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rlhf_ray.metrics.spans import ProcessSpans, SpanLog
from rlhf_ray.metrics.spans_file import SpansFile, WrittenSpan, read_spans

GOAL = 0.01
JOB = Path(__file__).parents[1] / "configs/grpo/tiny-cpu.yaml"
STEPS, RUN_S = 8, 240.0


def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path, nargs="?", help="of a run, with its spans.jsonl")
    if run_dir := parser.parse_args().run_dir:
        print(json.dumps(cost_of(run_dir)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-spans-") as folder:
        print(json.dumps(cost_of(_short_run(Path(folder)))))


def _short_run(folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "launch.cli",
        "grpo",
        str(JOB),
        "--run-dir",
        str(folder / "run"),
    ]
    command += ["--total-steps", str(STEPS), "--checkpoint.export", "never"]
    subprocess.run(command, check=True, timeout=RUN_S, stdout=subprocess.DEVNULL)
    return folder / "run"


def cost_of(run_dir: Path) -> dict[str, Any]:
    """CPU seconds of a step's spans against the seconds of the step: the median over steps."""
    by_step: dict[int, list[WrittenSpan]] = defaultdict(list)
    for one in read_spans(run_dir, first_step=1, last_step=2**62):
        by_step[one.step].append(one)
    pairs = []
    for spans in by_step.values():
        whole_s = sum(one.span.seconds for one in spans if one.span.operation == "step")
        pairs.append((_seconds_again(spans), whole_s))
    ratio = median(cost_s / whole_s for cost_s, whole_s in pairs)
    return {"ratio": ratio, "goal": GOAL, "holds": ratio < GOAL, "pairs": pairs}


def _seconds_again(spans: Sequence[WrittenSpan]) -> float:
    log = SpanLog()
    with tempfile.TemporaryDirectory() as folder:
        file = SpansFile(Path(folder), most_bytes=10**9)
        started_s = time.process_time()
        for one in spans:
            with log.span(one.span.operation, **one.span.labels):
                pass
        taken = pickle.loads(pickle.dumps(log.take()))
        moved = [one.earlier(1) for one in taken.ended]
        file.write(1, [ProcessSpans(role="policy", rank=0, node="node", spans=moved)])
        spent_s = time.process_time() - started_s
        file.close()
    return spent_s


if __name__ == "__main__":
    main()
