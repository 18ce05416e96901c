"""What every rank of a role does: environment, rendezvous, and rows from the object store."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import ray

from actors.cluster.gpus import require_capable_gpu, require_gpus
from actors.cluster.network import use_cluster_network
from actors.cluster.role_spec import ActorUsage, control
from rlhf_ray.metrics.spans import recorded, span
from rlhf_ray.metrics.usage import peak_memory_gb
from rlhf_ray.roles.groups import Ref, SampleArrays, SampleId
from rlhf_ray.types import Rollout


class Rank:
    """Base of the rank actors: one process of a group that works in step.

    torch is imported in `join`, after the environment of threads and GPUs is set.
    """

    def __init__(self, name: str, environment: Mapping[str, str], fetch_timeout_s: float) -> None:
        """Set the environment; must come before torch is imported."""
        os.environ.update(environment)
        use_cluster_network()
        logging.basicConfig(level=logging.INFO)
        self.name, self.fetch_timeout_s = name, fetch_timeout_s

    def import_libraries(self) -> None:
        """What its work needs, before there is any."""

    @control
    def stop(self) -> None:
        """Nothing outlives this process; answers also while the rank hangs in a collective."""

    @control
    def health(self) -> None:
        """That this process is alive; answers also while it computes."""

    @control
    def usage(self) -> ActorUsage:
        """What this rank needed and did; answers also while it computes."""
        return ActorUsage.of_process({"peak_gb": peak_memory_gb()})

    def use_threads(self, number: int) -> None:
        """Compute with so many from now on."""
        import torch

        torch.set_num_threads(number)

    @recorded
    def free_memory(self) -> None:
        """Leave what passes needed to whoever computes next on this device."""
        free_memory()

    def process_id(self) -> int:
        """Of this actor."""
        return os.getpid()

    def open_store(self, timeout_s: float) -> tuple[str, int]:
        """Rank 0 opens the rendezvous on a port that is bound before it is announced."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host = ray.util.get_node_ip_address()
        self.store = TCPStore(
            host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
        )
        return host, self.store.port

    def join(
        self, rank: int, num_ranks: int, host: str, port: int, timeout_s: float, on_gpu: bool
    ) -> None:
        """Join the process group: NCCL on GPUs, gloo on CPUs, whatever else this node has.

        Raises:
            ConfigError: The group was given GPUs, and torch sees none here, or one that is too old.
        """
        import torch
        import torch.distributed as dist
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        if on_gpu:
            require_gpus(self.name, num_gpus=1)
        timeout = timedelta(seconds=timeout_s)
        if rank:
            self.store = TCPStore(host, port, is_master=False, timeout=timeout)
        # DeepSpeed reads these although the process group exists already.
        os.environ.update(
            RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(num_ranks),
            MASTER_ADDR=host, MASTER_PORT=str(port),
        )  # fmt: skip
        if on_gpu:
            torch.cuda.set_device(0)
            require_capable_gpu(self.name)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=self.store,
            rank=rank,
            world_size=num_ranks,
            timeout=timeout,
        )
        self.rank, self.num_ranks = rank, num_ranks
        self.device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")

    def fetch(self, refs: Sequence[Ref], **labels: Any) -> dict[SampleId, Rollout]:
        """The rollouts of groups, from the object store; `labels` are of its span."""
        with span("fetch", **labels):
            groups = ray.get(list(refs), timeout=self.fetch_timeout_s)
        return {(r.draw, r.sample): r for rollouts in groups for r in rollouts}

    def look_up(self, arrays: SampleArrays, samples_B: Sequence[SampleId]) -> list[Any]:
        """What the ranks of a role left for samples, in the order of these."""
        of_sample: dict[SampleId, Any] = {}
        for of_rank in ray.get(list(arrays), timeout=self.fetch_timeout_s):
            of_sample.update(of_rank)
        return [of_sample[sample] for sample in samples_B]


def free_memory() -> None:
    """Return what Python no longer refers to, and what allocators keep of it, to GPU and system."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # glibc's alone: its heap keeps the pages of small tensors that were freed.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def free_pinned_memory() -> None:
    """Return the host's pinned memory that nothing lies in; PyTorch keeps it for its process."""
    import torch

    if torch.cuda.is_available():
        torch.accelerator.empty_host_cache()
