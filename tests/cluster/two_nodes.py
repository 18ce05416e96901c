"""Run a PPO job on a Ray cluster of two nodes on this machine: `python two_nodes.py CONFIG`.

The last line printed is JSON: the node of each actor, and what the job left behind.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster
from ray.util import list_named_actors, placement_group_table

from actors.pool import Pool
from launch import online
from launch.cluster import connect
from launch.run_folder import run_folder
from rlhf_ray.config.load import load_config
from rlhf_ray.config.online import PpoConfig
from rlhf_ray.data.job import load_online_data

PATIENCE_S = 20.0


def main() -> None:
    cluster = Cluster()
    for name in ("node_a", "node_b"):
        cluster.add_node(num_cpus=16, resources={name: 1.0})
    config = load_config(PpoConfig, sys.argv[1], ["--ray.address", cluster.address])
    connect(config, config.groups)
    whole = ray.cluster_resources()
    with run_folder(config):
        nodes, processes = asyncio.run(job(config))
    print(json.dumps({"nodes": nodes, "left": left_behind(whole, processes)}))
    ray.shutdown()
    cluster.shutdown()


async def job(config: PpoConfig) -> tuple[dict[str, str], list[int]]:
    pool = Pool(Path(config.run_dir).name, config.timeouts)
    try:
        await online.train(config, load_online_data(config), pool, "ppo")
        process_of = pool.process_ids()
        names = {node["NodeID"]: node_name(node) for node in ray.nodes()}
        nodes = {}
        for name in process_of:
            actor = ray.get_actor(name)
            node_id = await actor.__ray_call__.remote(
                lambda _: ray.get_runtime_context().get_node_id()
            )
            nodes[name.partition("/")[2]] = names[node_id]
    finally:
        await pool.close()
    processes = list(process_of.values())
    return nodes, processes


def node_name(node: dict[str, Any]) -> str:
    return next(name for name in ("node_a", "node_b") if name in node["Resources"])


def left_behind(whole: dict[str, float], processes: list[int]) -> dict[str, Any]:
    """What is still there a while after the job has ended."""
    left: dict[str, Any] = {}
    give_up_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_s:
        free = ray.available_resources()
        groups = placement_group_table().values()
        engines = [p for p in psutil.process_iter(["name"]) if "EngineCore" in p.info["name"]]
        mine = {child.pid for child in psutil.Process().children(recursive=True)}
        left = {
            "actors": [str(actor) for actor in list_named_actors(all_namespaces=True)],
            "placement_groups": [g["name"] for g in groups if g["state"] != "REMOVED"],
            "processes": [pid for pid in processes if psutil.pid_exists(pid)],
            "engines": [p.pid for p in engines if p.pid in mine],
            "resources": [name for name in whole if free.get(name, 0.0) < whole[name]],
        }
        if not any(left.values()):
            break
        time.sleep(0.5)
    return left


if __name__ == "__main__":
    main()
