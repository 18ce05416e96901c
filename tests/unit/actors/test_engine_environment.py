"""What vLLM's processes read from their environment, by what the engine is."""

from __future__ import annotations

import pytest
import torch

from actors.engines.report import WorkerReport
from actors.engines.spec import EngineSpec, engine_environment
from rlhf_ray.config.rollout import EngineConfig


def spec_of(**settings):
    defaults = {
        "model_path": "m",
        "tokenizer_path": "m",
        "revision": "main",
        "identity": "",
        "trust_remote_code": False,
        "max_model_len": 64,
        "weight_backend": "nccl",
        "sleeps": False,
        "num_gpus": 1,
        "engine": EngineConfig(),
    }
    return EngineSpec(**(defaults | settings))


@pytest.mark.parametrize(
    ("dtype", "num_gpus", "precision"),
    [("float32", 1, "ieee"), ("bfloat16", 1, None), ("auto", 1, None), ("float32", 0, None)],
)
def test_attention_in_float32_is_not_rounded_to_tf32_on_a_gpu(dtype, num_gpus, precision):
    spec = spec_of(num_gpus=num_gpus, engine=EngineConfig(dtype=dtype))
    assert engine_environment(spec).get("TRITON_F32_DEFAULT") == precision


def test_handles_of_memory_may_pass_where_weights_travel_by_them_and_nowhere_else():
    name = "VLLM_ALLOW_INSECURE_SERIALIZATION"
    assert engine_environment(spec_of(weight_backend="ipc"))[name] == "1"
    assert name not in engine_environment(spec_of(weight_backend="nccl"))


def test_engines_on_one_cpu_do_not_take_the_same_cores():
    assert engine_environment(spec_of(num_gpus=0))["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in engine_environment(spec_of(num_gpus=2))


def test_threads_change_although_vllm_takes_torchs_function_away(monkeypatch):
    """Its worker on a CPU does so when it starts; a standing engine serves jobs of either kind."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    before = torch.get_num_threads()
    try:
        for number in (2, 1, 3):
            WorkerReport().use_threads(number)
            assert torch.get_num_threads() == number
    finally:
        torch._C.set_num_threads(before)
