"""Which way weights travel from the policy to the engines, and where each way can work.

A guest's ranks lie on the first GPUs of its host (`actors.pool.state`). So where policy and
engines are placed on the same GPUs, rank 0 of the policy and engine 0 share the first of them.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from rlhf_ray.config.base import GroupConfig

Backend: TypeAlias = Literal["object_store", "ipc", "nccl"]

# Through the hosts' memory: what was packed is loaded from the processor's cache in part, and the
# first bucket is soon on its way.
MOST_HOST_BUCKET_MB = 32

# Up to which vLLM takes adapters: its kernels are made for these ranks.
ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def backend_of(
    asked: Literal["auto", "object_store", "ipc", "nccl"],
    *,
    policy: GroupConfig,
    rollout: GroupConfig,
) -> Backend:
    """Resolve `publication.backend`.

    `nccl` makes one group of rank 0 of the policy and of every engine's GPU: NCCL takes no GPU
    twice. `ipc` hands memory over to another process on the same GPU: each engine's GPU needs a
    rank of the policy. `object_store` copies through the hosts' memory, from anywhere to anywhere.

    Raises:
        ValueError: What was asked for cannot work there, or nothing that `auto` takes can.
    """
    if asked == "object_store" or (asked == "auto" and not rollout.gpus_per_rank):
        return "object_store"
    cpu_side = _cpu_side(policy, rollout)
    if asked == "auto":
        if cpu_side:
            raise ValueError(
                f"{cpu_side} while placement.rollout has GPUs: set it to 1; a policy that trains "
                "on a CPU all the same needs publication.backend object_store by name"
            )
        asked = "ipc" if _together(policy, rollout) else "nccl"
    elif cpu_side:
        raise ValueError(
            f"publication.backend {asked} moves memory from GPU to GPU, but {cpu_side}: give "
            "policy and rollout GPUs, or set publication.backend to object_store"
        )
    fault = _nccl_fault(policy, rollout) if asked == "nccl" else _ipc_fault(policy, rollout)
    if fault:
        raise ValueError(fault)
    return asked


def _cpu_side(policy: GroupConfig, rollout: GroupConfig) -> str:
    """The key that leaves one of the two on a CPU; empty where both have GPUs."""
    for role, group in (("policy", policy), ("rollout", rollout)):
        if not group.gpus_per_rank:
            return f"placement.{role}.gpus_per_rank is 0"
    return ""


def _together(policy: GroupConfig, rollout: GroupConfig) -> bool:
    return policy.host_of("policy") == rollout.host_of("rollout")


def _nccl_fault(policy: GroupConfig, rollout: GroupConfig) -> str:
    if not _together(policy, rollout):
        return ""
    return (
        "publication.backend nccl needs rank 0 of the policy on a GPU of its own, but "
        f"{_shared(policy, rollout)} puts it on the first engine's; "
        f"{_for_ipc(policy, rollout)}, or give placement.policy and placement.rollout GPUs of "
        "their own (no share)"
    )


def _ipc_fault(policy: GroupConfig, rollout: GroupConfig) -> str:
    if not _together(policy, rollout):
        return (
            "publication.backend ipc needs a rank of the policy on the GPU of each engine, but "
            "placement.policy and placement.rollout have GPUs apart; set publication.backend to "
            "auto or nccl, or share one with the other"
        )
    if policy.ranks >= _engine_gpus(rollout):
        return ""
    return (
        f"publication of weights on shared GPUs ({_shared(policy, rollout)}) needs a rank of the "
        f"policy on each of the engines' {_engine_gpus(rollout)} GPUs ({rollout.ranks} x "
        f"{rollout.gpus_per_rank}), got placement.policy.ranks {policy.ranks}; "
        f"{_for_ipc(policy, rollout)}, or give placement.policy and placement.rollout GPUs of "
        "their own (no share) for nccl, or set publication.backend to object_store, which copies "
        "all weights through the hosts' memory"
    )


def _for_ipc(policy: GroupConfig, rollout: GroupConfig) -> str:
    """The numbers at which `ipc` works."""
    needed = _engine_gpus(rollout)
    if policy.ranks >= needed:
        return "set publication.backend to auto or ipc"
    fewer = policy.ranks // rollout.gpus_per_rank
    or_fewer = f" or placement.rollout.ranks to {fewer}" if fewer else ""
    return f"set placement.policy.ranks to {needed}{or_fewer}, with publication.backend auto"


def _engine_gpus(rollout: GroupConfig) -> int:
    return rollout.ranks * rollout.gpus_per_rank


def _shared(policy: GroupConfig, rollout: GroupConfig) -> str:
    """How the two come to lie on the same GPUs, in the configuration's words."""
    shares = {"policy": policy.share, "rollout": rollout.share}
    return ", ".join(f"placement.{role}.share: {host}" for role, host in shares.items() if host)
