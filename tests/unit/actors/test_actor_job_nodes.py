"""What nodes say is compared with what roles need; results of runs go where they are missing."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from fake_pools import PlacedPool

from actors.cluster.file_tasks import NodeReport, code_of_package
from actors.cluster.run_files import RunFiles
from actors.pool import job_nodes
from actors.pool.job_nodes import check_nodes, skipped_steps_fetched
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.errors import ConfigError, RunError

ADDRESSES = {
    "policy": "10.0.0.2",
    "reference": "10.0.0.2",
    "rollout": "10.0.0.3",
    "reward_worker": "10.0.0.4",
}


@pytest.fixture
def nodes(monkeypatch) -> dict[str, dict[str, Any]]:
    """What each node says that is not as it should be, by address."""
    said: dict[str, dict[str, Any]] = {address: {} for address in ADDRESSES.values()}
    good = {"code": code_of_package(), "sees_token": True, "missing": frozenset()}

    async def reports(config, address_of, paths):
        return {node: NodeReport(**{**good, **said[node]}) for node in address_of}

    monkeypatch.setattr(job_nodes, "_reports", reports)
    return said


@pytest.fixture
def sent(monkeypatch) -> list[tuple[str, set[str]]]:
    sent: list[tuple[str, set[str]]] = []

    async def send(files, folder):
        sent.append((folder, set(files.distant)))

    monkeypatch.setattr(RunFiles, "send", send)
    return sent


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "earlier/export"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def config(tmp_path, model):
    (tmp_path / "mine.py").touch()
    return GrpoConfig.model_validate(
        {
            "run_dir": str(tmp_path / "run"),
            "ray": {"address": "10.0.0.1:6379"},
            "data": {"path": "rows.jsonl"},
            "policy": {"model": {"path": str(model)}},
            "reward": {"functions": [{"path": f"{tmp_path}/mine.py:f"}]},
            "algorithm": {"kl": {"coefficient": 0.01}},
        }
    )


async def refusal(config) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        await check_nodes(config, PlacedPool(ADDRESSES))
    return str(caught.value).splitlines()[1:]


async def test_nodes_that_see_everything_need_no_files(config, nodes, sent):
    pool = PlacedPool(ADDRESSES)
    await check_nodes(config, pool)
    assert pool.is_placed
    assert not pool.files.distant
    assert not sent


async def test_all_that_is_missing_is_said_in_one_error(config, nodes, sent, model, tmp_path):
    nodes["10.0.0.2"] = {"missing": {str(model)}}
    nodes["10.0.0.4"] = {"missing": {str(model), f"{tmp_path}/mine.py"}}
    nodes["10.0.0.3"] = {"code": "another"}
    ours = code_of_package()
    assert await refusal(config) == [
        "  10.0.0.3 has another rlhf-ray than this machine "
        f"(code another, here {ours}): install the same one",
        f"  policy on 10.0.0.2: policy.model.path names '{model}', which is not there",
        f"  reward_worker on 10.0.0.4: reward.functions.0.path names '{tmp_path}/mine.py', which "
        "is not there",
        f"  reference on 10.0.0.2: policy.model.path names '{model}', which is not there",
    ]
    assert not sent


async def test_a_runs_result_is_sent_where_it_is_missing_or_may_be_old(config, nodes, sent, model):
    (model.parent / "status.json").touch()
    nodes["10.0.0.2"] = {"missing": {str(model)}}
    nodes["10.0.0.3"] = {"sees_token": False}
    pool = PlacedPool(ADDRESSES)
    await check_nodes(config, pool)
    assert sent == [(str(model), {"10.0.0.2", "10.0.0.3"})]
    assert pool.files.distant == {"10.0.0.3": "10.0.0.3"}


async def test_a_cluster_of_ones_own_is_not_asked(config, monkeypatch):
    async def reports(*arguments):
        raise AssertionError("this machine need not be asked")

    monkeypatch.setattr(job_nodes, "_reports", reports)
    pool = PlacedPool(ADDRESSES)
    own = GrpoConfig.model_validate({**config.model_dump(), "ray": {}})
    await check_nodes(own, pool)
    assert pool.is_placed


async def test_what_skipped_steps_left_is_fetched_after_a_failure_too(
    config, nodes, monkeypatch, caplog
):
    fetched = []

    async def fetch(files, folder):
        fetched.append(folder)
        raise RunError("the node is gone")

    monkeypatch.setattr(RunFiles, "fetch", fetch)
    with caplog.at_level(logging.WARNING), pytest.raises(RunError, match="three in a row"):
        async with skipped_steps_fetched(config, PlacedPool(ADDRESSES)):
            raise RunError("three in a row")
    assert fetched == [f"{config.run_dir}/skipped"]
    assert "the node is gone" in caplog.text
