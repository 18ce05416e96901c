"""The node of policy, critic and reference is lost: a run goes on when another one comes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

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
STEPS, WAIT_S = 8, 240.0


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[Nodes, Path, Path]]:
    """A head and two workers, which do not see a folder of the head's, and Ray's folder there."""
    if reason := why_not():
        pytest.skip(reason)
    hidden, temp_dir = tmp_path / "hidden", Path(tempfile.mkdtemp(prefix="r-"))
    hidden.mkdir()
    nodes = Nodes(temp_dir)
    try:
        for index, zone in enumerate(ZONES):
            disks = [hidden, temp_dir] if index else []
            nodes.start(f"zone={zone}", num_cpus=3, hidden=disks)
        nodes.wait_for(len(ZONES))
        yield nodes, hidden, temp_dir
    finally:
        nodes.close()
        shutil.rmtree(temp_dir, ignore_errors=True)


def steps_of(folder: Path) -> list[int]:
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.long
@pytest.mark.parametrize("comes", [True, False], ids=["another comes", "none comes"])
def test_a_run_waits_for_another_node_and_goes_on_or_stops_resumably(nodes, make_config, comes):
    cluster, hidden, temp_dir = nodes
    run_dir = hidden / "run"
    config = make_config(
        run_dir,
        total_steps=STEPS,
        checkpoint={"every": 2, "keep": 2},
        placement=PLACEMENT,
        timeouts={"place_s": 60 if comes else 10},
        failures={"actor": {"restarts": 2, "backoff_s": 0}},
    )
    dump_config(config, hidden / "job.yaml")
    command = [sys.executable, "-m", "launch.cli", "ppo", str(hidden / "job.yaml")]
    with (hidden / "log.txt").open("w") as log:
        job = subprocess.Popen(
            [*cluster.enter(0), *command, "--ray.address", cluster.head],
            env=cluster.environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        give_up_s = time.monotonic() + WAIT_S
        while max(steps_of(run_dir), default=0) < 3:
            assert job.poll() is None, (hidden / "log.txt").read_text()
            assert time.monotonic() < give_up_s, (hidden / "log.txt").read_text()
            time.sleep(0.05)
        cluster.lose(1)
        if comes:
            cluster.start("zone=a", num_cpus=3, hidden=[hidden, temp_dir])
        status = job.wait(WAIT_S)
    finally:
        job.kill()
    said = (hidden / "log.txt").read_text()
    found = json.loads((run_dir / "status.json").read_text())
    if comes:
        assert (status, found["state"]) == (0, "finished"), said
        assert steps_of(run_dir) == [*range(STEPS + 1)]
        moved = f"places of policy have moved from {cluster.address(1)} to {cluster.address(3)}"
        assert moved in said + (run_dir / "logs/driver.log").read_text()
    else:
        assert (status, found["state"]) == (1, "failed"), said
        # All three lived there; which of them is met first is a matter of time.
        lost = r"ActorDied: (policy|value|reference)\..* was started again 2 times"
        assert re.match(lost, found["reason"]), found
        assert sorted(path.name for path in (run_dir / "checkpoints").glob("step_*"))
