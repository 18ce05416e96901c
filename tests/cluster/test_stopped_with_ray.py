"""A stop that Ray's own processes get as well: a terminal that goes, `timeout`, Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil

from rlhf_ray.errors import EXIT_INTERRUPTED

JOB = """
run_dir: {folder}/run
total_steps: 10000
batch_size: 2
data: {{path: {folder}/texts.jsonl}}
policy: {{model: {{path: {model}, dtype: float32}}, optim: {{lr: 1.0e-4}}}}
"""


def test_the_run_says_that_it_was_interrupted_and_leaves_nothing(stories, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "Once upon a time"}\n' * 4)
    config = tmp_path / "sft.yaml"
    config.write_text(JOB.format(folder=tmp_path, model=stories))
    metrics, status = tmp_path / "run/metrics.jsonl", tmp_path / "run/status.json"
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH_")}
    environment["HOME"] = str(home)
    run = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "sft", str(config)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    processes = [psutil.Process(run.pid)]
    try:
        deadline_s = time.monotonic() + 120
        while not (metrics.is_file() and metrics.stat().st_size):
            assert run.poll() is None and time.monotonic() < deadline_s
            time.sleep(0.2)
        processes += processes[0].children(recursive=True)
        assert json.loads(status.read_text())["state"] == "running"
        os.killpg(run.pid, signal.SIGTERM)
        # 1 where Ray is first: it ends a process that calls the node after that is gone.
        assert run.wait(timeout=45) in (EXIT_INTERRUPTED, 1)
        assert json.loads(status.read_text())["state"] == "interrupted"
        _, alive = psutil.wait_procs(processes, timeout=30)
        assert not alive
        # Ray would leave a token there, for which every later `ray start --head` would ask.
        assert not (home / ".ray/auth_token").exists()
    finally:
        for process in processes:
            if process.is_running():
                process.kill()
