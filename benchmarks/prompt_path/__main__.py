r"""Through how many of the project's files a prompt of PPO passes, from its draw to the metrics.

    RLHF_RAY_DATA=/path/to/data python -m benchmarks.prompt_path

Four steps of `configs/ppo/stories-cpu.yaml` with its four models run as a user runs them. In every
process the files are noted in which a function is called from the metrics of the first step to
those of the third: start-up, evaluation and checkpoints lie outside. Ends with 1 where they are
more than `--most`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
# Called once for the metrics of each step.
LOG = ("rlhf_ray/metrics/names.py", "check_names")
SETTINGS = {
    "total_steps": 4,
    "prompts_per_step": 4,
    "samples_per_prompt": 2,
    "eval.every": 0,
    "eval.num_prompts": 1,
    "eval.data.limit": 1,
    "checkpoint.every": 0,
    "checkpoint.export": "never",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_job(Path(folder))
        files = files_of_a_step(Path(folder) / "notes")
    for file, functions in sorted(files.items()):
        print(f"{file:44} {', '.join(sorted(functions)[:6])}")
    print(f"{len(files)} files, at most {arguments.most} wanted")
    return int(len(files) > arguments.most)


def run_job(folder: Path) -> None:
    """Run it with every process's calls noted below `folder`."""
    (folder / "notes").mkdir()
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        PROMPT_PATH_NOTES=str(folder / "notes"),
        PROMPT_PATH_ROOT=str(ROOT),
    )
    command = [sys.executable, "-m", "launch.cli", "ppo", "configs/ppo/stories-cpu.yaml"]
    command += [f"--run_dir={folder / 'run'}"]
    command += [f"--{key}={value}" for key, value in SETTINGS.items()]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=900)


def files_of_a_step(folder: Path) -> dict[str, set[str]]:
    """The functions that were called, by their files."""
    calls = []
    for notes in folder.glob("*.tsv"):
        for line in notes.read_text().splitlines():
            seconds, file, function = line.split("\t")
            calls.append((float(seconds), file, function))
    # Of the start's metrics, of those of each step: two whole steps lie between.
    _, first_s, _, third_s, _ = sorted(s for s, *called in calls if tuple(called) == LOG)
    files: dict[str, set[str]] = defaultdict(set)
    for seconds, file, function in calls:
        if first_s <= seconds < third_s:
            files[file].add(function)
    return files


if __name__ == "__main__":
    sys.exit(main())
