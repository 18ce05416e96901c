"""Jobs and models that the tests of planning share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.model_sizes import LLAMA, QWEN
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.online import GrpoConfig, PpoConfig
from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.config.supervised import RmConfig, SftConfig
from rlhf_ray.config.tools.stages import stages_of
from rlhf_ray.memory import GIB
from rlhf_ray.models.shape import shape_of
from rlhf_ray.planning.advice import Advice, advise
from rlhf_ray.planning.layout import Cluster, smallest_cluster
from rlhf_ray.planning.plan import Plan, plan_job

ROOT = Path(__file__).parents[3]

MODELS: dict[str, dict[str, Any]] = {
    **LLAMA,
    **QWEN,
    "Qwen/Qwen2.5-0.5B": QWEN["Qwen/Qwen2.5-0.5B-Instruct"],
    "tiny": {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    "llama-134m": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 1024,
    },
    "qwen2-66m": {
        "model_type": "qwen2",
        "vocab_size": 32000,
        "hidden_size": 640,
        "intermediate_size": 1728,
        "num_hidden_layers": 10,
        "num_attention_heads": 10,
        "num_key_value_heads": 5,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
}
_DRAWN = {"model_type": "llama", "max_position_embeddings": 1024}
MODELS["llama-19m"] = {
    **_DRAWN,
    "vocab_size": 2000,
    "hidden_size": 640,
    "intermediate_size": 1280,
    "num_hidden_layers": 5,
    "num_attention_heads": 10,
    "num_key_value_heads": 1,
}
MODELS["qwen2-22m"] = {
    **_DRAWN,
    "model_type": "qwen2",
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 1280,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "tie_word_embeddings": True,
}
MODELS["qwen2-25m"] = {
    **MODELS["qwen2-22m"],
    "vocab_size": 32000,
    "intermediate_size": 1664,
    "num_hidden_layers": 3,
}
MODELS["qwen3-55m"] = {
    **MODELS["qwen2-22m"],
    "model_type": "qwen3",
    "head_dim": 64,
    "vocab_size": 50000,
    "intermediate_size": 1856,
    "num_hidden_layers": 8,
    "num_key_value_heads": 4,
}
EIGHT_B = "meta-llama/Llama-3.1-8B-Instruct"
SEVENTY_B = "meta-llama/Llama-3.3-70B-Instruct"
SHAPES = {name: shape_of(config) for name, config in MODELS.items()}

JOBS = {
    "sft": SftConfig,
    "rm": RmConfig,
    "dpo": DpoConfig,
    "ppo": PpoConfig,
    "grpo": GrpoConfig,
    "sample": SampleConfig,
}
# What a job cannot do without.
NEEDED: dict[str, dict[str, Any]] = {
    "sft": {"policy": {"model": {"path": EIGHT_B}}, "max_length": 2048},
    "rm": {"reward": {"model": {"path": EIGHT_B}}, "max_length": 2048},
    "dpo": {"policy": {"model": {"path": EIGHT_B}}, "max_length": 2048},
    "ppo": {
        "policy": {"model": {"path": EIGHT_B}},
        "reward": {"functions": [{"path": "m:f"}]},
        "rollout": {"max_model_len": 2048},
    },
    "grpo": {
        "policy": {"model": {"path": EIGHT_B}},
        "reward": {"functions": [{"path": "m:f"}]},
        "rollout": {"max_model_len": 2048},
    },
}
NEEDED["sample"] = NEEDED["grpo"]


def job(name: str, **sections: Any) -> Any:
    """A configuration; `sections` are laid over what the job needs."""
    values = {"data": {"path": "rows.jsonl"}, **NEEDED[name]}
    cls: Any = JOBS[name]
    return cls.model_validate(laid_over(values, sections))


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = laid_over(below[key], above[key])
    return merged


def node(gpus: int = 8, gpu_gb: float = 80, node_gb: float = 0, nodes: int = 1) -> Cluster:
    return Cluster(
        nodes=nodes,
        gpus_per_node=gpus,
        gpu_bytes=int(gpu_gb * GIB),
        node_bytes=int(node_gb * GIB),
    )


def planned(config: Any, cluster: Cluster | None = None) -> Plan:
    """On a given cluster, or on as few nodes of 8 GPUs as hold it."""
    return plan_job(config, SHAPES, cluster or smallest_cluster(config.groups, node()))


def advised(config: Any, plan: Plan) -> list[Advice]:
    return advise(stages_of(config), SHAPES, plan)


def memory_of(plan: Plan, role: str) -> Any:
    [need] = [need for need in plan.roles if need.role == role]
    return need.memory
