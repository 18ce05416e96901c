"""What vLLM makes of the shipped GPU configurations on a card that is faked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_ray.config.jobs import JOBS
from rlhf_ray.config.load import load_config

ROOT = Path(__file__).parents[3]
# As CUDA shows an H100 of 80 GB and an A10G of 24 GB.
H100_BYTES, A10G_BYTES = 84_930_000_000, 23_680_000_000
# Published sizes of the families' configurations.
_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
SIZES = {
    "llama3-8b": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "llama3-70b": {
        **_LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
}
CONFIGS = sorted(
    path for job in ("grpo", "ppo") for path in (ROOT / "configs" / job).glob("*gpu.yaml")
)


def key_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(scope="module")
def resolved(tmp_path_factory, stories):
    """By configuration: what vLLM resolves. One process for all, vLLM's import takes long."""
    asked = {}
    for path in CONFIGS:
        model, _, hardware = path.stem.rpartition("-")
        folder = tmp_path_factory.mktemp(model)
        (folder / "config.json").write_text(json.dumps(SIZES[model]))
        overrides = ["--policy.model.path", str(folder), "--policy.model.tokenizer", str(stories)]
        memory_bytes = A10G_BYTES if hardware == "1gpu" else H100_BYTES
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
    config = load_config(JOBS[path.parent.name], path)
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
    assert engine["worker_extension"] == "actors.engines.worker.WorkerReport"


@pytest.mark.parametrize("path", CONFIGS, ids=key_of)
def test_tensor_parallelism_divides_all_heads(resolved, path):
    engine = resolved[key_of(path)]
    sizes = SIZES[path.stem.rpartition("-")[0]]
    assert engine["heads_a_gpu"] * engine["gpus"] == sizes["num_attention_heads"]
    assert engine["kv_heads_a_gpu"] * engine["gpus"] == sizes["num_key_value_heads"]


@pytest.mark.parametrize("path", CONFIGS, ids=key_of)
def test_keys_of_the_configuration_reach_the_engine(resolved, path):
    engine = resolved[f"{key_of(path)} in float32"]
    assert engine["dtype"] == "float32"
    assert engine["batched_tokens"] == 16384
