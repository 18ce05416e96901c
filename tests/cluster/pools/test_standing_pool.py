"""A pool that outlives the command that started it: one job at a time, and `down` leaves nothing.

Each command is a process of its own, on a cluster beside the other tests' one.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from standing import NAME, Standing, process_of, shared_memory

from launch.run import signals
from launch.run import standing as clusters
from rlhf_ray.errors import EXIT_INTERRUPTED

# A job that attaches, says so, and does nothing more.
HOLDER = f"""
import sys, time
from actors.pool.record import PoolRecord
from launch.run.cluster import connect
from rlhf_ray.config.jobs import PipelineConfig
stage = {{"name": "sft", "job": "sft"}}
connect(PipelineConfig(ray={{"pool": {NAME!r}}}, stages=[stage]), {{}})
PoolRecord.find({NAME!r}).acquire("runs/holder")
print("held", flush=True)
time.sleep(600)
"""


def sft_of(standing: Standing) -> str:
    """The configuration of a job for it."""
    return str(standing.registry.parent / "sft.yaml")


def test_it_serves_one_job_at_a_time_in_the_same_processes(standing, tmp_path):
    told = standing.run("pool", "status").said
    process = process_of("policy", told)
    assert "free" in told and psutil.pid_exists(int(process))

    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env=standing.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    job = ("sft", sft_of(standing), "--ray.pool", NAME, "--run-dir")
    refused = standing.run(*job, str(tmp_path / "refused"))
    assert refused.status == 2
    assert f"pool {NAME} is in use by runs/holder" in " ".join(refused.said.split())

    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=30)
    attached = standing.run(*job, str(tmp_path / "attached"))
    assert attached.status == 0, attached.said
    told = standing.run("pool", "status").said
    assert process_of("policy", told) == process
    assert "attached" in "".join(told.split()), "the model that is held"

    shaped = standing.run(*job, str(tmp_path / "shaped"), "--placement.policy.ranks", "2")
    assert shaped.status == 2
    assert "but the pool holds it as" in " ".join(shaped.said.split())


def test_down_leaves_nothing_of_it(standing, before):
    head = psutil.Process(standing.cluster["head"]["pid"])
    processes = [head, *head.children(recursive=True)]
    down = standing.run("pool", "down", "--name", NAME)
    assert down.status == 0, down.said
    assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not shared_memory() - before
    assert not list(standing.registry.iterdir())
    assert standing.run("pool", "status").said.startswith("no pool is up")


def registered_head(entry: Path) -> psutil.Process | None:
    """The head of a pool's own cluster, as soon as it is registered."""
    if not entry.is_file():
        return None
    head = json.loads(entry.read_text())["head"]
    return head and psutil.Process(head["pid"])


def starts_actors(head: psutil.Process) -> bool:
    """Whether the pool's record, the first of its actors, is there."""
    return any("ray::Keeper" in " ".join(p.cmdline()) for p in head.children(recursive=True))


@pytest.mark.parametrize(
    ("sent", "is_time"),
    [(signal.SIGTERM, bool), (signal.SIGINT, starts_actors)],
    ids=["while Ray starts", "while actors start"],
)
def test_up_that_is_interrupted_leaves_nothing(sent, is_time, standing):
    entry = standing.registry / "broken-off.json"
    up = subprocess.Popen(
        [
            *(sys.executable, "-m", "launch.cli", "pool", "up", sft_of(standing)),
            *("--job", "sft", "--name", entry.stem),
        ],
        env=standing.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A shell without a terminal has its background jobs ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    processes = []
    try:
        deadline_s = time.monotonic() + 120
        while not ((head := registered_head(entry)) and is_time(head)):
            assert up.poll() is None and time.monotonic() < deadline_s
            time.sleep(0.1)
        processes = [head, *head.children(recursive=True)]
        up.send_signal(sent)
        assert up.wait(timeout=150) == EXIT_INTERRUPTED
        _, alive = psutil.wait_procs(processes, timeout=10)
        assert not alive
        assert not entry.is_file() and not entry.with_suffix(".token").is_file()
    finally:
        up.kill()
        up.wait(timeout=30)
        for process in processes:
            if process.is_running():
                process.kill()


def test_the_head_of_a_start_that_is_interrupted_is_registered(tmp_path, monkeypatch):
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **keywords: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **keywords))
        signal.raise_signal(signal.SIGUSR1)
        return started[-1]

    monkeypatch.setattr(clusters, "folder", lambda: tmp_path)
    monkeypatch.setattr(clusters, "use_token", lambda pool: None)  # it is this process's for good
    monkeypatch.setattr(clusters.subprocess, "Popen", start)
    # Of SIGINT a shell without a terminal may have told pytest to take no notice.
    monkeypatch.setattr(signals, "_STOPPING", (signal.SIGUSR1,))
    with pytest.raises(KeyboardInterrupt):
        clusters.start_cluster(clusters.claim("early"), num_cpus=1, num_gpus=0)
    registered = clusters.cluster_of("early")
    assert registered is not None and registered.head is not None
    assert [registered.head.pid] == [process.pid for process in started]
    clusters.stop_cluster(registered)
    assert not psutil.pid_exists(registered.head.pid)
    clusters.forget(registered)
    assert not list(tmp_path.iterdir())
