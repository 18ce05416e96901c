"""A node is lost or cut off: a run goes on when one is there, or stops and can be resumed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from namespaces import Nodes, why_not

from rlhf_ray.config.tools.load import dump_config

ZONES = ["c", "a", "b"]
PLACEMENT = {
    "policy": {"labels": {"zone": "a"}},
    "value": {"share": "policy"},
    "reference": {"share": "policy"},
    "rollout": {"labels": {"zone": "b"}},
    "reward_worker": {"labels": {"zone": "c"}},
}
STEPS, WAIT_S = 8, 300.0
# A node that does not answer is given up after some 15 seconds.
GIVEN_UP_SOON = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def steps_of(folder: Path) -> list[int]:
    return [row["step"] for row in rows_of(folder)]


@dataclass(frozen=True)
class Job:
    """A run of PPO on the head.

    Attributes:
        cluster: Its nodes.
        hidden: A folder that the head alone sees.
        temp_dir: Ray's.
    """

    cluster: Nodes
    hidden: Path
    temp_dir: Path

    @property
    def run_dir(self) -> Path:
        return self.hidden / "run"

    @property
    def said(self) -> str:
        logs = (self.hidden / "log.txt", self.run_dir / "logs/driver.log")
        return "".join(log.read_text() for log in logs if log.exists())

    def run(self, config: Any, amid: Callable[[], None]) -> tuple[int, dict[str, Any]]:
        """Exit status and what `status.json` says; `amid` is called behind the third step."""
        dump_config(config, self.hidden / "job.yaml")
        command = [sys.executable, "-m", "launch.cli", "ppo", str(self.hidden / "job.yaml")]
        with (self.hidden / "log.txt").open("w") as log:
            process = subprocess.Popen(
                [*self.cluster.enter(0), *command, "--ray.address", self.cluster.head],
                env=self.cluster.environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            give_up_s = time.monotonic() + WAIT_S
            while max(steps_of(self.run_dir), default=0) < 3:
                assert process.poll() is None, self.said
                assert time.monotonic() < give_up_s, self.said
                time.sleep(0.05)
            amid()
            status = process.wait(WAIT_S)
        finally:
            process.kill()
        return status, json.loads((self.run_dir / "status.json").read_text())

    def add(self, zone: str) -> None:
        self.cluster.add(f"zone={zone}", num_cpus=3, hidden=[self.hidden, self.temp_dir])

    def cut_off_for_a_while(self, index: int) -> None:
        """Until the others have given it up; then Ray begins there anew."""
        self.cluster.cut_off(index)
        self.cluster.wait_for(len(ZONES) - 1)
        self.cluster.bring_back(index)
        disks = [self.hidden, self.temp_dir]
        self.cluster.start(index, f"zone={ZONES[index]}", num_cpus=3, hidden=disks)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """On a head and two workers."""
    if reason := why_not():
        pytest.skip(reason)
    hidden, temp_dir = tmp_path / "hidden", Path(tempfile.mkdtemp(prefix="r-"))
    hidden.mkdir()
    nodes = Nodes(temp_dir, **GIVEN_UP_SOON)
    try:
        for index, zone in enumerate(ZONES):
            disks = [hidden, temp_dir] if index else []
            nodes.add(f"zone={zone}", num_cpus=3, hidden=disks)
        nodes.wait_for(len(ZONES))
        yield Job(nodes, hidden, temp_dir)
    finally:
        nodes.close()
        shutil.rmtree(temp_dir, ignore_errors=True)


@pytest.fixture
def config_of(make_config, job):
    def made(place_s: int) -> Any:
        return make_config(
            job.run_dir,
            total_steps=STEPS,
            checkpoint={"every": 2, "keep": 2},
            placement=PLACEMENT,
            timeouts={"place_s": place_s},
            failures={"actor": {"restarts": 2, "backoff_s": 0}},
        )

    return made


def finished(job: Job, status: int, found: dict[str, Any]) -> None:
    assert (status, found["state"]) == (0, "finished"), job.said
    assert steps_of(job.run_dir) == [*range(STEPS + 1)]


@pytest.mark.long
def test_another_node_takes_the_place_of_one_that_is_lost(job, config_of):
    def amid() -> None:
        job.cluster.lose(1)
        job.add("a")

    finished(job, *job.run(config_of(60), amid))
    places = job.cluster.address(1), job.cluster.address(3)
    assert "places of policy have moved from {} to {}".format(*places) in job.said


@pytest.mark.long
@pytest.mark.parametrize("index", [1, 2], ids=["what trains", "the engine"])
def test_a_node_that_was_cut_off_takes_its_place_again(job, config_of, index):
    finished(job, *job.run(config_of(90), lambda: job.cut_off_for_a_while(index)))
    restarts = [
        row["recovery/restarts"] for row in rows_of(job.run_dir) if "recovery/restarts" in row
    ]
    assert restarts, job.said


@pytest.mark.long
def test_where_none_comes_a_run_stops_resumably(job, config_of):
    status, found = job.run(config_of(10), lambda: job.cluster.lose(1))
    assert (status, found["state"]) == (1, "failed"), job.said
    # All three lived there; which of them is met first is a matter of time.
    lost = r"ActorDied: (policy|value|reference)\..* was started again 2 times"
    assert re.match(lost, found["reason"]), found
    assert sorted(path.name for path in (job.run_dir / "checkpoints").glob("step_*"))
