"""`rlhf-ray submit` to a head and two workers, from a folder outside the project."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from jobs import DEADLINES
from started_nodes import ThreeNodes, three_nodes

from rlhf_ray.config.tools.yaml_file import write_yaml

PATIENCE_S = 280
SECRET = "planted-8f3a61c0"
# 1 where the variable has reached the actor that asks.
REWARD = f"""
import hashlib
import os

def knows(completions, **_):
    digest = hashlib.sha256(os.environ.get("PLANTED", "").encode()).hexdigest()
    return [float(digest == "{hashlib.sha256(SECRET.encode()).hexdigest()}") for _ in completions]
"""


@pytest.fixture(scope="module")
def cluster_of_three():
    with three_nodes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def desk(tmp_path_factory, stories, shared_data) -> Path:
    """The folder of somebody who submits: configurations, rows and a reward function.

    The job that runs to its end has no engine, which takes long to start; the one that is stopped
    has all roles.
    """
    folder = tmp_path_factory.mktemp("desk")
    texts = (shared_data / "text/tinystories_sample.txt").read_text().split("<|endoftext|>")
    rows = [{"prompt": text.strip()[:20], "completion": text.strip()[20:60]} for text in texts[:8]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "my_rewards.py").write_text(REWARD)
    common = {
        "data": {"path": "rows.jsonl"},
        "policy": {"model": {"path": str(stories), "dtype": "float32"}},
        "timeouts": DEADLINES | {"start_s": 250},
    }
    sft = {
        "total_steps": 2,
        "batch_size": 4,
        "placement": {"policy": {"resources": {"left": 0.5}}},
    }
    grpo = {
        "total_steps": 100_000,
        "prompts_per_step": 2,
        "samples_per_prompt": 2,
        "rollout": {"max_new_tokens": 8, "max_num_seqs": 8, "kv_cache_gb": 0.1},
        "reward": {"functions": [{"path": "my_rewards.py:knows"}]},
        "placement": {
            "policy": {"resources": {"left": 0.5}},
            "rollout": {"resources": {"right": 0.5}},
            "reward": {"resources": {"right": 0.5}},
        },
    }
    for job, values in (("sft", sft), ("grpo", grpo)):
        write_yaml(common | values, folder / f"{job}.yaml")
    return folder


def rlhf_ray(desk: Path, cluster: ThreeNodes, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *words, "--address", cluster.address],
        cwd=desk,
        env=cluster.environment | {"PLANTED": SECRET},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def submitted(
    desk: Path, cluster: ThreeNodes, job: str, name: str, *words: str
) -> subprocess.Popen[str]:
    run_dir = desk.parent / f"run-{name}"
    options = ["--name", name, "--env", "PLANTED", "--run-dir", str(run_dir), "--working-dir", "."]
    return rlhf_ray(desk, cluster, "submit", job, f"{job}.yaml", *options, *words)


@pytest.fixture(scope="module")
def jobs(desk, cluster_of_three) -> dict[str, subprocess.Popen[str]]:
    """Two side by side: one that ends by itself, and one that does not."""
    names = {"short": "sft", "long": "grpo"}
    return {name: submitted(desk, cluster_of_three, job, name) for name, job in names.items()}


@pytest.fixture(scope="module")
def finished(jobs) -> tuple[int, str]:
    """Status and words of a job that ran to its end."""
    said, _ = jobs["short"].communicate(timeout=PATIENCE_S)
    return jobs["short"].returncode, said


@pytest.fixture(scope="module")
def stopped(jobs, finished, desk, cluster_of_three) -> tuple[int, str, dict[str, Any]]:
    """The same of one that was stopped while it trained, and what there was of it before."""
    job = jobs["long"]
    metrics = desk.parent / "run-long/metrics.jsonl"
    wait_for(lambda: metrics.is_file() and '"step": 2' in metrics.read_text(), job)
    traces = traces_of(cluster_of_three, "run-long")
    stop = rlhf_ray(desk, cluster_of_three, "jobs", "stop", "long")
    answer, _ = stop.communicate(timeout=120)
    assert stop.returncode == 0, answer
    said, _ = job.communicate(timeout=60)
    return job.returncode, said, traces


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < give_up_s
        time.sleep(0.5)


def traces_of(cluster: ThreeNodes, run: str) -> dict[str, Any]:
    """Actors, processes and shared memory of a run that is running."""
    actors = [a for a in cluster.listed("actors") if (a["name"] or "").startswith(f"{run}/")]
    processes = [psutil.Process(actor["pid"]) for actor in actors if actor["state"] == "ALIVE"]
    processes += [child for process in processes for child in process.children(recursive=True)]
    shared = set()
    for process in processes:
        maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        shared |= {line.split()[5] for line in maps if "/dev/shm/" in line and "(del" not in line}
    return {
        "names": {actor["name"] for actor in actors},
        "processes": processes,
        "programs": {process.name() for process in processes},
        "shared": {name for name in shared if "plasma" not in name},
    }


def test_a_job_runs_to_its_end_and_its_log_is_shown(finished, desk):
    status, said = finished
    assert status == 0, said[-4000:]
    assert "step 2/2" in said
    assert "short: succeeded" in said
    steps = (desk.parent / "run-short/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps] == [0, 1, 2]
    assert (desk.parent / "run-short/export/model.safetensors").is_file()


def test_a_variable_is_known_on_other_nodes_than_the_drivers(stopped, desk):
    """Each reward is 1 where it is."""
    steps = (desk.parent / "run-long/metrics.jsonl").read_text().splitlines()[:3]
    assert [json.loads(line).get("rollout/reward_mean") for line in steps] == [None, 1.0, 1.0]


def test_the_dashboard_tells_what_it_is(finished, stopped, desk, cluster_of_three):
    said = cluster_of_three.ask("api/jobs/short")
    folder = str(desk.parent / "run-short")
    assert said["metadata"] == {"job": "sft", "run": "run-short", "run_dir": folder}
    assert stopped[2]["names"] >= {"run-long/policy/0", "run-long/rollout/0"}


def test_a_job_that_is_stopped_leaves_nothing(stopped, desk, cluster_of_three):
    status, said, traces = stopped
    assert status == 130, said[-4000:]
    assert "long: stopped" in said
    state = json.loads((desk.parent / "run-long/status.json").read_text())["state"]
    assert state == "interrupted"
    assert any("EngineCore" in program for program in traces["programs"])
    _, alive = psutil.wait_procs(traces["processes"], timeout=20)
    assert alive == []
    assert [name for name in traces["shared"] if Path(name).exists()] == []
    groups = cluster_of_three.listed("placement_groups")
    assert [group["name"] for group in groups if group["state"] != "REMOVED"] == []
    actors = cluster_of_three.listed("actors")
    assert [a["name"] for a in actors if a["state"] != "DEAD" and "/" in (a["name"] or "")] == []


def test_values_of_variables_are_in_no_file_and_no_record(
    finished, stopped, desk, cluster_of_three
):
    places = [cluster_of_three.folder, desk.parent / "run-short", desk.parent / "run-long"]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in json.dumps(cluster_of_three.ask("api/jobs/"))
    assert SECRET not in json.dumps(cluster_of_three.listed("actors"))
    assert all(SECRET not in said for _, said in (finished, stopped[:2]))


def test_a_job_that_fails_gives_its_status(desk, cluster_of_three):
    wrong = ["--policy.model.path", "/not/on/the/cluster"]
    failed = submitted(desk, cluster_of_three, "sft", "wrong", *wrong)
    said, _ = failed.communicate(timeout=PATIENCE_S)
    assert failed.returncode == 2, said[-4000:]
    assert "policy.model.path: no such folder" in said


def test_a_name_that_is_taken_is_refused(finished, desk, cluster_of_three):
    again = submitted(desk, cluster_of_three, "sft", "short")
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 2, said
    assert said.strip().endswith("the cluster has had a job 'short': take another name")


def test_jobs_lists_and_shows_them(finished, stopped, desk, cluster_of_three):
    listed = rlhf_ray(desk, cluster_of_three, "jobs", "list")
    said, _ = listed.communicate(timeout=60)
    assert listed.returncode == 0, said
    assert all(word in said for word in ("short", "succeeded", "long", "stopped"))
    shown = rlhf_ray(desk, cluster_of_three, "jobs", "logs", "short", "--follow")
    said, _ = shown.communicate(timeout=60)
    assert (shown.returncode, "step 2/2" in said) == (0, True)
