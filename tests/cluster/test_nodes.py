"""Two Ray nodes: the policy on one, with guests; rollouts on the other. The same training works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import train

from rlhf_ray.config.load import dump_config

SCRIPT = Path(__file__).with_name("two_nodes.py")
PLACEMENT = {
    "policy": {"resources": {"node_a": 1.0}},
    "value": {"share": "policy"},
    "reference": {"share": "policy"},
    "rollout": {"resources": {"node_b": 1.0}},
}
SETTINGS = {"total_steps": 2}


@pytest.fixture(scope="module")
def one_node(pool, make_config, tmp_path_factory):
    """The run that the other must equal: one node, every role on a group of its own."""
    return train(make_config(tmp_path_factory.mktemp("one_node"), **SETTINGS), pool)


@pytest.fixture(scope="module")
def two_nodes(one_node, make_config, tmp_path_factory):
    """Folder of the run on two nodes, and what `two_nodes.py` says of it."""
    folder = tmp_path_factory.mktemp("two_nodes")
    config = make_config(folder / "run", **SETTINGS, placement=PLACEMENT)
    dump_config(config, folder / "job.yaml")
    # A cluster with an address file of its own: `ray.init()` elsewhere must not find it.
    ray_folder = tmp_path_factory.mktemp("ray")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder / "job.yaml")],
        env=environment | {"RAY_TMPDIR": str(ray_folder)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "run", json.loads(done.stdout.rstrip("\n").rpartition("\n")[2])


def test_roles_live_where_the_configuration_puts_them(two_nodes):
    _, said = two_nodes
    policys_node = {f"{role}/0" for role in ("policy", "value", "reference")}
    assert {name for name, node in said["nodes"].items() if node == "node_a"} >= policys_node
    assert said["nodes"]["rollout/0"] == "node_b"


def test_the_training_is_the_same_on_two_nodes(one_node, two_nodes):
    folder, _ = two_nodes
    exports = [run / "export/model.safetensors" for run in (folder, one_node)]
    assert exports[0].read_bytes() == exports[1].read_bytes()
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert all(step["mismatch/logprob_abs_max"] < 1e-4 for step in steps[1:])


def test_a_job_leaves_nothing_on_the_cluster(two_nodes):
    _, said = two_nodes
    assert not any(said["left"].values()), said["left"]
