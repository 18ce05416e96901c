"""Weights to the engines: which way they travel, where each way can work, what the probe lets pass.

A guest's ranks lie on the first GPUs of its host (`actors.pool.state`). So where policy and
engines are placed on the same GPUs, rank 0 of the policy and engine 0 share the first of them.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import PositiveInt

from rlhf_ray.config.base import Config, NonNegativeFloat
from rlhf_ray.config.placement import GroupConfig

Backend: TypeAlias = Literal["object_store", "ipc", "nccl"]
# What engine and trainer may differ by on a token, in nats, where both compute in float32: they
# agree to 1e-5 there. No ratio of theirs is further from 1 than by a thousandth.
EXACT_GAP = 1e-3
# Through the hosts' memory: what was packed is loaded from the processor's cache in part, and the
# first bucket is soon on its way.
MOST_HOST_BUCKET_MB = 32
# Up to which vLLM takes adapters: its kernels are made for these ranks.
ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class PublicationConfig(Config):
    """Weights to the engines, and the probe that follows.

    Attributes:
        backend: `auto` is `object_store` where engines run on CPUs, `ipc` where policy and rollout
            share GPUs, else `nccl`.
        bucket_mb: Weights travel in buckets of about this size; through the hosts' memory
            (`object_store`) in buckets of 32 MB at most.
        adapters: What engines get of a policy with adapters (`policy.model.lora`). `merged`: its
            weights, changed by the adapters, each time. `apart`: the weights once, and then the
            adapters alone, which vLLM adds in each pass; sampling is slower by that.
        running: What becomes of responses that are being sampled meanwhile. `recompute`: their
            tokens so far pass the new weights before the next one is sampled, which takes time, and
            that token is the new weights' own. `keep` spares that: what older weights left in the
            cache of a response stays. The recorded log-probabilities are true in both.
        probe_sequences: Prompts that engine and trainer score after each publication. For a 99th
            percentile a hundred tokens are few; 16 prompts of 100 tokens are 1,600.
        max_logprob_gap: The run stops where engine and trainer differ by more on a probe token, in
            nats; 0 takes 1e-3 where both compute in float32, else none: there single tokens of
            healthy pairs are half a nat apart.
        max_logprob_gap_mean: The same for the mean of all tokens; 0 takes 0.15 where
            `max_logprob_gap` takes none.
        max_logprob_gap_p99: The same for the 99th percentile; 0 takes 1.0 there.
    """

    backend: Literal["auto", "object_store", "ipc", "nccl"] = "auto"
    bucket_mb: PositiveInt = 256
    adapters: Literal["merged", "apart"] = "merged"
    running: Literal["recompute", "keep"] = "recompute"
    probe_sequences: PositiveInt = 16
    max_logprob_gap: NonNegativeFloat = 0.0
    max_logprob_gap_mean: NonNegativeFloat = 0.0
    max_logprob_gap_p99: NonNegativeFloat = 0.0


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
