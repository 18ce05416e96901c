"""Run a PPO job on a Ray cluster that is there: `python three_nodes.py CONFIG ADDRESS`.

It is stopped after its first step and resumed. The last line printed is JSON: the address of each
actor's node, the errors of jobs that do not fit, and what was left behind.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from jobs import inside, process_ids
from ray.util import list_named_actors, placement_group_table

from actors.cluster.nodes import addresses
from actors.pool.job_nodes import check_nodes
from actors.pool.pool import Pool
from actors.ranks.group import RankSpec
from actors.ranks.reference import ReferenceRank
from launch.job import run_on
from launch.run.cluster import connect
from rlhf_ray.config.online import PpoConfig
from rlhf_ray.config.tools.load import load_config
from rlhf_ray.errors import ConfigError
from rlhf_ray.jobs.online import PPO

PATIENCE_S = 20.0
NUM_NODES = 3


def main() -> None:
    path, address = sys.argv[1:]
    config = load_config(PpoConfig, path, ["--ray.address", address])
    connect(config, config.groups)
    wait_for_nodes()
    whole = ray.cluster_resources()
    refused = {name: refusal(config, changes) for name, changes in bad_changes(config).items()}
    nodes, processes = asyncio.run(jobs(config))
    spread = asyncio.run(sum_over_nodes(config))
    left = left_behind(whole, processes)
    print(json.dumps({"nodes": nodes, "refused": refused, "spread": spread, "left": left}))
    ray.shutdown()


def wait_for_nodes() -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while len(addresses()) < NUM_NODES:
        assert time.monotonic() < give_up_s, f"only {addresses()} are there"
        time.sleep(0.2)


async def jobs(config: PpoConfig) -> tuple[dict[str, str], list[int]]:
    """The first step; then the rest from its checkpoint, on the same pool."""
    pool = Pool(Path(config.run_dir).name, config.timeouts)
    first = config.model_copy(update={"total_steps": 1})
    try:
        for job in (first, config.model_copy(update={"resume": "auto"})):
            await run_on(pool, PPO.prepare(job))
        process_of = process_ids(pool)
        nodes = {name: await address_of(name) for name in process_of}
    finally:
        await pool.close()
    return nodes, list(process_of.values())


async def address_of(name: str) -> str:
    actor: Any = ray.get_actor(name)
    return str(await actor.__ray_call__.remote(lambda _: ray.util.get_node_ip_address()))


async def sum_over_nodes(config: PpoConfig) -> dict[str, Any]:
    """Two ranks on a node each: their addresses by rank, and a sum that gloo makes."""
    groups = PpoConfig.model_validate(
        {
            **config.model_dump(),
            "placement": {"reference": {"ranks": 2, "strategy": "STRICT_SPREAD"}},
        }
    ).groups
    pool = Pool("spread", config.timeouts)
    try:
        pool.place({"reference": groups["reference"]})
        ranks = await pool.start("reference", RankSpec(actor_class=ReferenceRank))
        sums = await inside(ranks, all_reduced)
        places = pool.places_of("reference")
        return {"addresses": [place.address for place in places], "sums": sums}
    finally:
        await pool.close()


def all_reduced(rank: Any) -> float:
    import torch
    import torch.distributed as dist

    value = torch.tensor([1.0 + rank.rank])
    dist.all_reduce(value)
    return float(value)


def bad_changes(config: PpoConfig) -> dict[str, dict[str, Any]]:
    """Settings that this cluster cannot serve."""
    model = Path(config.run_dir).parent / "model"  # in a folder that the other nodes do not see
    shutil.copytree(config.policy.model.path, model)
    return {
        "labels": {"placement": {"reward": {"labels": {"zone": "nowhere"}}}},
        "nodes": {"placement": {"policy": {"ranks": 4, "strategy": "STRICT_SPREAD"}}},
        "gpus": {
            "placement": {"rollout": {"gpus_per_rank": 1}},
            "publication": {"backend": "object_store"},
        },
        "path": {
            "policy": {"model": {"path": str(model)}},
            "placement": config.placement.model_dump(),
        },
    }


def refusal(config: PpoConfig, changes: dict[str, Any]) -> str:
    values = {**config.model_dump(), **changes, "run_dir": f"{config.run_dir}_refused"}
    bad = PpoConfig.model_validate(values)

    async def check() -> str:
        pool = Pool("refused", bad.timeouts)
        try:
            await check_nodes(bad, pool)
        except ConfigError as error:
            return str(error)
        finally:
            await pool.close()
        return ""

    return asyncio.run(check())


def left_behind(whole: dict[str, float], processes: list[int]) -> dict[str, Any]:
    """What is still there a while after the jobs have ended."""
    left: dict[str, Any] = {}
    give_up_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_s:
        free = ray.available_resources()
        groups = placement_group_table().values()
        left = {
            "actors": [str(actor) for actor in list_named_actors(all_namespaces=True)],
            "placement_groups": [g["name"] for g in groups if g["state"] != "REMOVED"],
            "processes": [pid for pid in processes if psutil.pid_exists(pid)],
            "resources": [name for name in whole if free.get(name, 0.0) < whole[name]],
        }
        if not any(left.values()):
            break
        time.sleep(0.5)
    return left


if __name__ == "__main__":
    main()
