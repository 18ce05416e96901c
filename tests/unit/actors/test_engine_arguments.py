"""What vLLM makes of the shipped GPU configurations on a card that is faked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.model_sizes import LLAMA, QWEN
from rlhf_ray.config.jobs import JOB_CONFIGS
from rlhf_ray.config.tools.load import load_config

ROOT = Path(__file__).parents[3]
# As CUDA shows an H100 of 80 GB and an A10G of 24 GB.
H100_BYTES, A10G_BYTES = 84_930_000_000, 23_680_000_000
pytestmark = pytest.mark.set_up_once
CONFIGS = sorted(
    path for job in ("grpo", "ppo") for path in (ROOT / "configs" / job).glob("*gpu.yaml")
)


def key_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def sizes_of(path: Path) -> dict[str, Any]:
    """Of the model that a configuration names."""
    return {**LLAMA, **QWEN}[load_config(JOB_CONFIGS[path.parent.name], path).policy.model.path]


@pytest.fixture(scope="module")
def resolved(tmp_path_factory, stories):
    """By configuration: what vLLM resolves. One process for all, vLLM's import takes long."""
    asked = {}
    for path in CONFIGS:
        folder = tmp_path_factory.mktemp("model")
        (folder / "config.json").write_text(json.dumps(sizes_of(path)))
        overrides = ["--policy.model.path", str(folder), "--policy.model.tokenizer", str(stories)]
        memory_bytes = A10G_BYTES if path.stem.endswith("1gpu") else H100_BYTES
        asked[key_of(path)] = [path.parent.name, str(path), overrides, memory_bytes]
        asked[f"{key_of(path)} in float32"] = [
            path.parent.name,
            str(path),
            [*overrides, "--rollout.dtype", "float32", "--rollout.max_num_batched_tokens", "16384"],
            memory_bytes,
        ]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("faked_h100.py"))],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("path", CONFIGS, ids=key_of)
def test_a_shipped_configuration_makes_an_engine(resolved, path):
    config = load_config(JOB_CONFIGS[path.parent.name], path)
    group, engine = config.placement.rollout, resolved[key_of(path)]
    assert engine["batched_tokens"] >= 8192
    assert engine["batched_tokens"] == config.rollout.max_num_batched_tokens
    assert engine["chunked_prefill"]
    assert engine["sequences"] == config.rollout.max_num_seqs
    assert engine["context"] == config.rollout.max_model_len
    assert engine["gpus"] == group.gpus_per_rank
    # One GPU needs no process of its own for it; several must not wait for Ray's.
    several = group.gpus_per_rank > 1
    assert engine["executor"] == ("MultiprocExecutor" if several else "UniProcExecutor")
    assert engine["memory_share"] == config.rollout.gpu_memory_share
    assert engine["sleeps"] == engine["cumem"] == config.engines_sleep
    # Decoding replays whole graphs, at every number of sequences that can run together.
    assert engine["graphs"] == "FULL_AND_PIECEWISE"
    assert engine["largest_graph"] >= config.rollout.max_num_seqs
    assert engine["dtype"] == "bfloat16"
    assert engine["logprobs"] == "processed_logprobs"
    assert engine["runner"] == "V2"
    shared = group.host_of("rollout") == config.placement.policy.host_of("policy")
    assert engine["weights"] == ("ipc" if shared else "nccl")
    assert engine["worker_extension"] == "actors.engines.report.WorkerReport"


@pytest.mark.parametrize("path", CONFIGS, ids=key_of)
def test_tensor_parallelism_divides_all_heads(resolved, path):
    engine = resolved[key_of(path)]
    sizes = sizes_of(path)
    assert engine["heads_a_gpu"] * engine["gpus"] == sizes["num_attention_heads"]
    assert engine["kv_heads_a_gpu"] * engine["gpus"] == sizes["num_key_value_heads"]


@pytest.mark.parametrize("path", CONFIGS, ids=key_of)
def test_keys_of_the_configuration_reach_the_engine(resolved, path):
    engine = resolved[f"{key_of(path)} in float32"]
    assert engine["dtype"] == "float32"
    assert engine["batched_tokens"] == 16384
