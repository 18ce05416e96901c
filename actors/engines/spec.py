"""What a vLLM engine is started with: arguments, environment, and a tracker of shared memory."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from typing import Any

from rlhf_ray.config.publication import ADAPTER_RANKS
from rlhf_ray.config.rollout import EngineConfig

TRACKER_START_S = 60.0
CPU_BLOCK_TOKENS = 32

# The parent ends at once, so that the tracker is nobody's child.
_TRACKER = """
import os
if os.fork():
    os._exit(0)
from multiprocessing.resource_tracker import main
main({fd})
"""


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """What one engine is started with.

    Two are equal, and the engine of one serves the other, wherever their models lie: weights are
    published before the first rollout, so that only what they are loaded into has to be the same.
    How responses are sampled comes with each request.

    Attributes:
        model_path: Folder in the transformers layout.
        identity: Of architecture and tokenizer, as `engine_identity` gives it.
        num_gpus: Tensor parallelism; 0 runs vLLM's CPU backend.
        max_model_len: Prompt and response tokens together.
        weight_backend: vLLM's name of the weight-transfer engine.
        sleeps: Whether its GPUs serve another role between rollouts.
        adapter_rank: Of the adapter that weights come with; 0 where it is merged into them.
    """

    model_path: str = field(compare=False)
    tokenizer_path: str = field(compare=False)
    revision: str = field(compare=False)
    identity: str
    trust_remote_code: bool
    engine: EngineConfig
    max_model_len: int
    num_gpus: int
    weight_backend: str
    sleeps: bool
    adapter_rank: int = 0


def engine_arguments(spec: EngineSpec) -> dict[str, Any]:
    """VLLM's engine arguments of one replica."""
    from vllm.config import WeightTransferConfig

    engine = spec.engine
    dtype = engine.dtype
    if dtype == "auto":
        dtype = "bfloat16" if spec.num_gpus else "float32"
    arguments: dict[str, Any] = {
        "model": spec.model_path,
        "tokenizer": spec.tokenizer_path,
        "revision": spec.revision,
        "trust_remote_code": spec.trust_remote_code,
        "dtype": dtype,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "max_model_len": spec.max_model_len,
        "tensor_parallel_size": max(1, spec.num_gpus),
        "enforce_eager": engine.enforce_eager,
        "seed": 0,  # each request has one of its own
        # First come, first served, as by default, but that the probe passes what waits for memory.
        "scheduling_policy": "priority",
        # vLLM's default ignores the temperature; the trainer's log-probabilities do not.
        "logprobs_mode": "processed_logprobs",
        "weight_transfer_config": WeightTransferConfig(backend=spec.weight_backend),
        # Its own loggers; ours (`actors.engines.report`) and Ray's are given beside the arguments.
        "disable_log_stats": True,
        "worker_extension_cls": "actors.engines.report.WorkerReport",
    }
    if rank := spec.adapter_rank:
        arguments["enable_lora"] = True
        arguments["max_lora_rank"] = min(room for room in ADAPTER_RANKS if room >= rank)
    if spec.num_gpus > 1:
        # Inside a placement group vLLM would take Ray and wait for GPUs that this actor holds.
        arguments["distributed_executor_backend"] = "mp"
    if spec.num_gpus:
        arguments["gpu_memory_utilization"] = engine.gpu_memory_share
        arguments["enable_sleep_mode"] = spec.sleeps
    else:
        arguments |= _on_cpu(spec)
    return arguments | engine.engine


def _on_cpu(spec: EngineSpec) -> dict[str, Any]:
    engine = spec.engine
    return {
        "enforce_eager": True,
        "kv_cache_memory_bytes": int(engine.kv_cache_gb * 2**30),
        # Samples of a prompt share its whole blocks, and vLLM's own size (128) is longer than most
        # prompts. Its CPU kernels take multiples of 32.
        "block_size": CPU_BLOCK_TOKENS,
        # Discarding what a seeded request draws at the end of a chunk makes vLLM's CPU backend fail
        # ("CPU Generator does not use offset"), so prompts are prefilled whole, many at a time.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(engine.max_num_batched_tokens, spec.max_model_len),
        # The worker in the engine's own process: with one of its own, each of the two spins while
        # the other works, on cores that the model could use. By its path, because vLLM makes two
        # processes of what is called `uni` on a CPU.
        "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
        "worker_cls": "actors.engines.cpu_worker.FusedWorker",
        "scheduler_cls": "actors.engines.cpu_scheduler.FinalLogprobsScheduler",
    }


def engine_environment(spec: EngineSpec) -> dict[str, str]:
    """What vLLM's processes of one replica read from their environment."""
    environment = {}
    if spec.weight_backend == "ipc":
        # CUDA handles are no plain data; they only pass from this process to its own children.
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    if not spec.num_gpus:
        # Two engines on one machine would otherwise bind their threads to the same cores.
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    elif spec.engine.dtype == "float32":
        # FlashAttention takes no float32, and vLLM's own kernel in Triton leaves the products'
        # precision to Triton, which rounds factors to TF32's 10 bits unless it is told otherwise.
        environment["TRITON_F32_DEFAULT"] = "ieee"
    return environment


def outlive_actor() -> None:
    """Start the resource tracker of this process and its children where Ray does not see it.

    vLLM's processes talk through segments of hundreds of megabytes below /dev/shm. Python has a
    process that unlinks them when all their users are gone, however these ended. But it is a child
    of the actor, and Ray kills an actor together with its children and process group.
    """
    tracker: Any = resource_tracker._resource_tracker
    if tracker._fd is not None:
        return
    read_end, write_end = os.pipe()
    try:
        subprocess.run(
            [sys.executable, "-c", _TRACKER.format(fd=read_end)],
            pass_fds=[read_end],
            start_new_session=True,
            check=True,
            timeout=TRACKER_START_S,
        )
    finally:
        os.close(read_end)
    tracker._fd = write_end
