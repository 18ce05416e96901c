"""An H100 that vLLM takes for real while it resolves an engine's arguments; no card is needed.

A process of its own, because vLLM chooses its platform once. From standard input it reads
`{key: [job, configuration's file, overrides, bytes of the card's memory]}`, and it writes to
standard output what vLLM makes of the engines of each, by the same key.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


def resolved(job: str, path: str, overrides: Sequence[str], memory_bytes: int) -> dict[str, Any]:
    """What vLLM resolves the arguments of one of the job's engines to."""
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.executor import Executor

    from actors.engines.spec import engine_arguments
    from actors.roles.engines import engine_spec
    from rlhf_ray.config.jobs import JOB_CONFIGS
    from rlhf_ray.config.tools.load import load_config

    type(current_platform).memory_bytes = memory_bytes
    spec = engine_spec(load_config(JOB_CONFIGS[job], path, overrides))
    assert spec is not None, f"{job} has no engines"
    # As AsyncLLM.from_engine_args does.
    config = AsyncEngineArgs(**engine_arguments(spec)).create_engine_config(
        UsageContext.ENGINE_CONTEXT
    )
    model, parallel, graphs = config.model_config, config.parallel_config, config.compilation_config
    return {
        "batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
        "sequences": config.scheduler_config.max_num_seqs,
        "context": model.max_model_len,
        "executor": Executor.get_class(config).__name__,
        "gpus": parallel.tensor_parallel_size,
        "heads_a_gpu": model.get_num_attention_heads(parallel),
        "kv_heads_a_gpu": model.get_num_kv_heads(parallel),
        "memory_share": config.cache_config.gpu_memory_utilization,
        "sleeps": model.enable_sleep_mode,
        "cumem": model.enable_cumem_allocator,
        "graphs": graphs.cudagraph_mode.name,
        "largest_graph": graphs.max_cudagraph_capture_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "logprobs": model.logprobs_mode,
        "runner": "V2" if config.use_v2_model_runner else "V1",
        "weights": config.weight_transfer_config.backend,
        "worker_extension": parallel.worker_extension_cls,
    }


def fake() -> None:
    """Put the faked card in the place of this machine's CPU; before anything of vLLM is used."""
    sys.modules["vllm._C_stable_libtorch"] = ModuleType("vllm._C_stable_libtorch")
    import vllm.platforms
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    class FakedH100(NonNvmlCudaPlatform):  # type: ignore[misc]
        memory_bytes = 0

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(major=9, minor=0)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "NVIDIA H100 80GB HBM3"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return cls.memory_bytes

        def is_cumem_allocator_available(self) -> bool:
            return True

    vllm.platforms._current_platform = FakedH100()
    import vllm.config.vllm
    from vllm.model_executor.models import registry

    # Triton is there, and would ask a card's driver.
    vllm.config.vllm.HAS_TRITON = True
    # To keep what a process of its own finds of an architecture would import kernels here.
    registry._LazyRegisteredModel._save_modelinfo_to_cache = lambda *_: None


def main() -> None:
    """Everything that libraries print goes to standard error."""
    asked = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        fake()
        answers = {key: resolved(*arguments) for key, arguments in asked.items()}
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
