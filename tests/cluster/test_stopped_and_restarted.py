"""Commands that are stopped and go on, or killed and started again, end like undisturbed ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from jobs import SCORERS, train

from actors.pool.pool import Pool
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.config.tools.load import load_config
from rlhf_ray.loops.checkpoints import CheckpointStore

WAIT_S = 240.0
# A guard that pauses for a moment before it starts a run again.
RLHF_RAY = """
import sys
from launch import cli
from launch.run import guard
guard.FIRST_PAUSE_S = 0.1
sys.exit(cli.main())
"""


def configs(folder: Path, model: Path) -> dict[str, dict[str, Any]]:
    (folder / "rows.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"Once upon a time {n} ", "completion": "there was a cat"}) + "\n"
            for n in range(12)
        )
    )
    policy = {"model": {"path": str(model), "dtype": "float32"}, "optim": {"lr": 1e-4}}
    job = {"data": {"path": str(folder / "rows.jsonl")}, "policy": policy}
    sft = {"total_steps": 80, "batch_size": 4, "checkpoint": {"every": 20, "keep": 2}}
    grpo = {
        "total_steps": 4,
        "prompts_per_step": 4,
        "samples_per_prompt": 4,
        "rollout": {"max_new_tokens": 160, "max_num_seqs": 16, "kv_cache_gb": 0.25},
        "reward": {"functions": [{"path": f"{SCORERS}:share_of_e"}]},
        "publication": {"bucket_mb": 1},
        "algorithm": {"kl": {"coefficient": 0.0}},
    }
    return {"sft": {**job, **sft}, "grpo": {**job, **grpo}}


class Command:
    """`rlhf-ray JOB`, and all processes that it has had."""

    def __init__(self, folder: Path, job: str, *options: str) -> None:
        self.run_dir, self.log = folder / "run", folder / "log.txt"
        self.log.touch()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH_")}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", RLHF_RAY, job, str(folder.parent / f"{job}.yaml")),
                    *("--run-dir", str(self.run_dir), "--resume", "auto", *options),
                ],
                env={**environment, "HOME": str(folder)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.below: list[psutil.Process] = []

    def steps(self) -> int:
        """The last that was logged."""
        file = self.run_dir / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def at(self, step: int) -> int:
        """The process that trains, when it has done a step."""
        give_up_s = time.monotonic() + WAIT_S
        while self.steps() < step or self.state() == "":
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < give_up_s, self.log.read_text()
            time.sleep(0.02)
        self.below += psutil.Process(self.process.pid).children(recursive=True)
        return int(self.status()["process"])

    def status(self) -> dict[str, Any]:
        file = self.run_dir / "status.json"
        text = file.read_text().strip() if file.exists() else ""
        return json.loads(text) if text else {}

    def state(self) -> str:
        return str(self.status().get("state", ""))

    def ends(self) -> int:
        """Its exit status; nothing is left of it."""
        status = self.process.wait(timeout=WAIT_S)
        _, alive = psutil.wait_procs(self.below, timeout=30)
        assert not alive
        return status

    def weights(self) -> bytes:
        return (self.run_dir / "export/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def desk(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    for job, config in configs(folder, stories).items():
        (folder / f"{job}.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def commands(desk: Path) -> Iterator[Any]:
    started = []

    def start(name: str, job: str, *options: str) -> Command:
        (desk / name).mkdir(exist_ok=True)
        started.append(Command(desk / name, job, *options))
        return started[-1]

    yield start
    for command in started:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait(timeout=10)


@pytest.fixture
def undisturbed(desk: Path, pool: Pool, tmp_path: Path) -> bytes:
    """The weights of a supervised run, on the session's actors."""
    config = load_config(SftConfig, desk / "sft.yaml", ["--run-dir", str(tmp_path)])
    return (train(config, pool) / "export/model.safetensors").read_bytes()


def test_a_supervised_run_comes_back_from_whatever_becomes_of_its_driver(commands, undisturbed):
    # Stopped amid its steps, it has saved the last of them.
    stopped = commands("sft", "sft")
    stopped.at(5)
    stopped.process.send_signal(signal.SIGINT)
    assert stopped.ends() == 130, stopped.log.read_text()
    assert stopped.state() == "interrupted"
    found = CheckpointStore(stopped.run_dir, keep=2).latest()
    assert found is not None and found.step == stopped.steps()
    # Its driver is killed, then hangs.
    guarded = commands("sft", "sft", "--restarts", "2", "--timeouts.heartbeat_s", "8")
    first = guarded.at(stopped.steps() + 25)
    os.kill(first, signal.SIGKILL)
    give_up_s = time.monotonic() + WAIT_S
    while (second := guarded.status()["process"]) == first:
        assert time.monotonic() < give_up_s, guarded.log.read_text()
        time.sleep(0.1)
    while not (guarded.run_dir / "heartbeat").exists():
        time.sleep(0.1)
    assert guarded.at(1) == second
    os.kill(second, signal.SIGSTOP)
    assert guarded.ends() == 0, guarded.log.read_text()
    log = guarded.log.read_text()
    assert "the run was killed by SIGKILL: restart 1 of 2" in log
    assert "the run hung (no heartbeat for 8 s) and was killed: restart 2 of 2" in log
    assert guarded.weights() == undisturbed


@pytest.mark.long
def test_a_run_that_was_stopped_amid_generation_goes_on_bit_for_bit(commands):
    undisturbed = commands("grpo-undisturbed", "grpo")
    assert undisturbed.ends() == 0, undisturbed.log.read_text()
    stopped = commands("grpo", "grpo")
    stopped.at(2)
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.ends() == 130, stopped.log.read_text()
    log = stopped.log.read_text()
    assert "SIGTERM: the run ends" in log
    assert stopped.state() == "interrupted"
    found = CheckpointStore(stopped.run_dir, keep=2).latest()
    assert found is not None and found.step == stopped.steps()
    if "without waiting for rollouts" in log:
        assert found.step == 2
    resumed = commands("grpo", "grpo")
    assert resumed.ends() == 0, resumed.log.read_text()
    assert resumed.weights() == undisturbed.weights()
