"""The largest model that fits some GPUs with every role on all of them, by `rlhf-ray plan`.

    python -m benchmarks.largest_models

All weights are trained, in bfloat16; the critic of PPO is as large as the policy. Everything else
is as in `configs/{grpo,ppo}/llama3-8b-8gpu.yaml`, but for `max_tokens_per_micro_batch: 8192`, and
for tensor parallelism and `gpu_memory_share`, of which any will do. A node has 8 GPUs and 1,800 GB
of memory. Prints a table in Markdown, with what the job takes of a node's memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.model_sizes import QWEN
from rlhf_ray.config.jobs import JOB_CONFIGS
from rlhf_ray.config.tools.load import load_config
from rlhf_ray.memory import GIB
from rlhf_ray.models.shape import shape_of
from rlhf_ray.planning.layout import Cluster, shown_bytes
from rlhf_ray.planning.plan import Plan, plan_job

CONFIGS = Path(__file__).parents[1] / "configs"
GPUS = (1, 2, 4, 8, 16, 32)
GPUS_OF_A_NODE, CARD_GB, NODE_GB = 8, 80, 1800
SHAPES = {name: shape_of(sizes) for name, sizes in QWEN.items()}
TENSOR_PARALLEL, MEMORY_SHARES = (1, 2, 4, 8), (0.5, 0.6, 0.7, 0.8)


def main() -> None:
    """Print the table."""
    print("| GPUs with 80 GB | GRPO | PPO | GRPO, the optimiser on the CPU |\n|---|---|---|---|")
    for num_gpus in GPUS:
        print(row(num_gpus))


def row(num_gpus: int) -> str:
    """Of the table."""
    columns = [("grpo", "none"), ("ppo", "none"), ("grpo", "cpu")]
    cells = [cell(job, num_gpus, offload=offload) for job, offload in columns]
    return f"| {num_gpus} | {' | '.join(cells)} |"


def cell(job: str, num_gpus: int, *, offload: str) -> str:
    """The largest model's name, and what it takes of a node."""
    plan = largest(job, num_gpus, offload=offload)
    if plan is None:
        return "none"
    [rollout] = [need for need in plan.roles if need.role == "rollout"]
    name = next(name for name, shape in SHAPES.items() if shape == rollout.model.shape)
    short = name.rpartition("/")[2].removesuffix("-Instruct")
    return f"{short}, {max(plan.host_bytes) / GIB:.0f} GB"


def largest(job: str, num_gpus: int, *, offload: str) -> Plan | None:
    """The plan of the largest model that fits; None where not even the smallest does."""
    for name in reversed(QWEN):
        for plan in _plans(job, name, num_gpus, offload):
            if plan.fits:
                return plan
    return None


def _plans(job: str, model: str, num_gpus: int, offload: str) -> Iterator[Plan]:
    nodes = -(-num_gpus // GPUS_OF_A_NODE)
    cluster = Cluster(
        nodes=nodes,
        gpus_per_node=min(num_gpus, GPUS_OF_A_NODE),
        gpu_bytes=shown_bytes(CARD_GB),
        node_bytes=NODE_GB * GIB,
    )
    for gpus, share in product(TENSOR_PARALLEL, MEMORY_SHARES):
        if gpus <= num_gpus:
            keys = {
                "policy.model.path": model,
                "policy.zero.offload_optimizer": offload,
                "rollout.gpu_memory_share": share,
                "placement.rollout.ranks": num_gpus // gpus,
                "placement.rollout.gpus_per_rank": gpus,
            }
            yield plan_job(_config(job, num_gpus, keys), SHAPES, cluster)


def _config(job: str, num_gpus: int, more: Mapping[str, Any]) -> Any:
    keys: dict[str, Any] = {
        **more,
        "policy.max_tokens_per_micro_batch": 8192,
        "reference.max_tokens_per_micro_batch": 8192,
        "value.max_tokens_per_micro_batch": 8192,
        "placement.policy.ranks": num_gpus,
        "placement.policy.strategy": "PACK",
        "placement.reference.ranks": num_gpus,
    }
    if job == "ppo":
        keys["placement.value.ranks"] = num_gpus
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    return load_config(JOB_CONFIGS[job], CONFIGS / job / "llama3-8b-8gpu.yaml", words)


if __name__ == "__main__":
    main()
