"""Three nodes with addresses and disks of their own: the same training as on one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import train
from namespaces import Nodes, why_not

from rlhf_ray.config.tools.load import dump_config

SCRIPT = Path(__file__).with_name("three_nodes.py")
# The driver is on the head, where nothing but rewards are computed.
ZONES = ["c", "a", "b"]
PLACEMENT = {
    "policy": {"labels": {"zone": "a"}},
    "value": {"share": "policy"},
    "reference": {"share": "policy"},
    "rollout": {"labels": {"zone": "in(b, d)"}},
    "reward": {"labels": {"zone": "c"}},
    "reward_worker": {"labels": {"zone": "c"}},
}
SETTINGS = {"total_steps": 2, "checkpoint": {"every": 1, "export": "each"}}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[tuple[Nodes, Path]]:
    """A head and two workers, and a folder that only the head sees the test's side of."""
    if reason := why_not():
        pytest.skip(reason)
    hidden = tmp_path_factory.mktemp("hidden")
    temp_dir = Path(tempfile.mkdtemp(prefix="r-"))  # short: Ray puts sockets there
    nodes = Nodes(temp_dir)
    try:
        for index, zone in enumerate(ZONES):
            disks = [hidden, temp_dir] if index else []
            nodes.add(f"zone={zone}", num_cpus=3, hidden=disks)
        yield nodes, hidden
    finally:
        nodes.close()
        shutil.rmtree(temp_dir, ignore_errors=True)


@pytest.fixture(scope="module")
def reward_model(stories, tmp_path_factory) -> Path:
    """A head drawn at random on the stories model."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("reward") / "model"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(stories, num_labels=1)
    model.config.pad_token_id = 0
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(stories).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def job_settings(reward_model):
    return {**SETTINGS, "reward": {"model": {"path": str(reward_model)}}}


@pytest.fixture(scope="module")
def started(nodes, make_config, job_settings) -> Iterator[subprocess.Popen[str]]:
    """`three_nodes.py`, which runs beside the run on one node."""
    cluster, hidden = nodes
    config = make_config(hidden / "run", **job_settings, placement=PLACEMENT)
    dump_config(config, hidden / "job.yaml")
    started = subprocess.Popen(
        [*cluster.enter(0), sys.executable, str(SCRIPT), str(hidden / "job.yaml"), cluster.head],
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield started
    started.kill()
    started.wait(timeout=10)


@pytest.fixture(scope="module")
def one_node(started, pool, make_config, job_settings, tmp_path_factory) -> Path:
    """The run that the other must equal: one node, and no break."""
    return train(make_config(tmp_path_factory.mktemp("one_node"), **job_settings), pool)


@pytest.fixture(scope="module")
def three_nodes(started, nodes, one_node):
    """Folder of the run on three nodes, and what `three_nodes.py` says of it."""
    said, errors = started.communicate(timeout=280)
    assert started.returncode == 0, errors[-4000:]
    return nodes[1] / "run", json.loads(said.rstrip("\n").rpartition("\n")[2])


def test_roles_live_where_the_configuration_puts_them(three_nodes, nodes):
    _, said = three_nodes
    head, policys, engines = (nodes[0].address(index) for index in range(3))
    where = {name.partition("/")[2]: address for name, address in said["nodes"].items()}
    assert {role: where[f"{role}/0"] for role in ("policy", "value", "reference")} == {
        "policy": policys,
        "value": policys,
        "reference": policys,
    }
    assert (where["reward_worker/0"], where["rollout/0"]) == (head, engines)


def test_the_training_is_the_same_although_it_was_broken_off(three_nodes, one_node):
    folder, _ = three_nodes
    for export in ("export", "checkpoints/step_00000001/export"):
        weights = [run / export / "model.safetensors" for run in (folder, one_node)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert all(step["mismatch/logprob_abs_max"] < 1e-4 for step in steps[1:])


def test_what_ranks_wrote_is_on_the_drivers_machine(three_nodes, one_node):
    folder, _ = three_nodes

    def files(run: Path) -> set[str]:
        written = [*run.glob("checkpoints/**/*"), *run.glob("export/**/*")]
        return {str(path.relative_to(run)) for path in written}

    assert files(folder) == files(one_node)


def test_ranks_on_two_nodes_find_each_other_in_the_order_of_addresses(three_nodes):
    spread = three_nodes[1]["spread"]
    assert spread["sums"] == [3.0, 3.0]
    assert spread["addresses"] == sorted(spread["addresses"])
    assert len(set(spread["addresses"])) == 2


def test_what_the_cluster_cannot_serve_is_refused_in_one_message(three_nodes, nodes):
    refused = three_nodes[1]["refused"]
    assert "no node for reward with zone=nowhere" in refused["labels"]
    assert "4 nodes asked for the 4 ranks of policy (STRICT_SPREAD), 3 there" in refused["nodes"]
    assert "1 GPU asked, 0 there" in refused["gpus"]
    for address in (nodes[0].address(0), nodes[0].address(2)):
        assert address in refused["labels"]
    model = f"{nodes[1]}/model"
    policys, engines = nodes[0].address(1), nodes[0].address(2)
    assert refused["path"].splitlines() == [
        "not every node is as the job needs it:",
        *(
            f"  {role} on {address}: policy.model.path names '{model}', which is not there"
            for role, address in (
                ("policy", policys),
                ("rollout", engines),
                ("reference", policys),
                ("value", policys),
            )
        ),
    ]


def test_jobs_leave_nothing_on_the_cluster(three_nodes):
    _, said = three_nodes
    assert not any(said["left"].values()), said["left"]
