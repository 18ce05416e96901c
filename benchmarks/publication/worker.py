"""A process of vLLM's: the real worker with its share of a model, and its transfer engine.

Left out is what vLLM does to weights for its kernels on a CPU: it packs them, and frees what it
packed. On a card they stay as they are loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.publication.answers import serve
from benchmarks.publication.fake_cuda import STREAMS, on_card, replace_transport

CACHE_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class WorkerPlace:
    """Which of them it is, where they meet, and who calls it."""

    rank: int
    num_ranks: int
    folder: Path
    callers: tuple[Connection, ...]


def run(place: WorkerPlace) -> None:
    """Be a worker."""
    os.environ.update(
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_ALLOW_INSECURE_SERIALIZATION="1",  # as an engine is started for CUDA's handles
        VLLM_CPU_OMP_THREADS_BIND="nobind",
    )
    replace_transport(place.folder.name)
    leave_weights_alone()
    serve(Worker(place), place.callers)
    end_groups()


def leave_weights_alone() -> None:
    """Have vLLM keep weights as it loads them."""
    from vllm.model_executor.layers import utils
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    utils.dispatch_cpu_unquantized_gemm = lambda layer, remove_weight: None
    CPUUnquantizedExperts.process_weights_after_loading = lambda self, layer: None


def end_groups() -> None:
    """Those of vLLM's workers."""
    from vllm.distributed.parallel_state import (
        destroy_distributed_environment,
        destroy_model_parallel,
    )

    destroy_model_parallel()
    destroy_distributed_environment()


class Worker:
    """What is asked of one."""

    def __init__(self, place: WorkerPlace) -> None:
        self.place = place

    def load(self, folder: str, backend: str) -> None:
        """Load a model from its files, ready to receive others of its shape."""
        from vllm.distributed.parallel_state import destroy_model_parallel

        destroy_model_parallel()  # its groups are those of a dense model or of experts
        self.worker = self._loaded(folder, backend)

    def on_worker(self, method: str, *arguments: Any) -> None:
        """A method of vLLM's own worker, as its engine calls it over all of them."""
        with on_card(self.place.rank):
            getattr(self.worker, method)(*arguments)

    def differences(self, folder: str) -> list[str]:
        """What it holds otherwise than vLLM reads it from files."""
        found, wanted = weights_of(self.worker), weights_of(self._loaded(folder, "ipc"))
        lines = [f"{name} is missing" for name in wanted.keys() - found.keys()]
        lines += [f"{name} is not the model's" for name in found.keys() - wanted.keys()]
        for name in wanted.keys() & found.keys():
            if bits_of(found[name]) != bits_of(wanted[name]):
                lines.append(f"{name} {list(found[name].shape)} has other values")
        return sorted(lines)

    def names(self) -> list[str]:
        """Of its weights."""
        return list(weights_of(self.worker))

    def num_numbers(self) -> int:
        """In this share."""
        return sum(weight.numel() for weight in weights_of(self.worker).values())

    def take_races(self) -> list[str]:
        """See `Streams`."""
        return STREAMS.take_races()

    def _loaded(self, folder: str, backend: str) -> Any:
        from vllm.config import set_current_vllm_config
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.worker.cpu_worker import CPUWorker

        from actors.engines.spec import EngineSpec, engine_arguments
        from rlhf_ray.config.rollout import EngineConfig

        spec = EngineSpec(
            model_path=folder,
            tokenizer_path=folder,
            revision="main",
            identity="",
            trust_remote_code=False,
            engine=EngineConfig(enforce_eager=True),
            max_model_len=64,
            num_gpus=self.place.num_ranks,
            weight_backend=backend,
            sleeps=False,
        )
        arguments = engine_arguments(spec) | {"kv_cache_memory_bytes": CACHE_BYTES}
        config = EngineArgs(**arguments).create_engine_config()
        rank, folder_of_all = self.place.rank, self.place.folder
        # vLLM names its shared memory after the file.
        store = f"file://{folder_of_all}/{folder_of_all.name}"
        with set_current_vllm_config(config):
            worker = CPUWorker(config, rank, rank, store)
            worker.init_device()
        worker.load_model()
        return worker


def weights_of(worker: Any) -> dict[str, torch.Tensor]:
    """Parameters and buffers, by their names in vLLM; a tied head under both of its names."""
    return dict(worker.model_runner.get_model().state_dict())


def bits_of(weight: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """All that there is to compare."""
    flat = weight.contiguous().view(-1).view(torch.uint8)
    return weight.dtype, weight.shape, flat.numpy().tobytes()
