"""A comparison with TRL runs from its models to its ratio, with both sides' real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.against_trl.turns import START_S
from benchmarks.bench.report import result_in

ROOT = Path(__file__).parents[2]


def test_both_sides_take_their_turns_and_leave_nothing(tmp_path):
    command = [sys.executable, "-m", "benchmarks.against_trl", "sft", "--quick", "--pairs", "2"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp"},
        capture_output=True,
        text=True,
        timeout=START_S + 40.0,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr  # 1 where TRL is too fast
    result = result_in(done.stdout)
    assert len(result["pairs"]) == 2
    for pair in result["pairs"]:
        assert min(pair.values()) > 0.0
    assert not list(tmp_path.glob("bench-*"))
