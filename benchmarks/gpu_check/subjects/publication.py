"""Do all weights arrive at the engines, bit for bit, and do both sides then agree?

What vLLM's own loader reads from the model's folder is the truth: its workers' digests of each
weight are taken before anything is published. A publication of changed weights must change them,
and one of the first weights again must bring back the very same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_check.online import (
    Online,
    apart,
    gaps,
    on_one_card,
    probes,
    tensor_parallel,
    tensor_parallel_apart,
)
from benchmarks.gpu_check.records import Measurement
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.subjects.agreement import agreement, dtype_of

# Of no bytes: vLLM's CPU kernels keep weights in a form of their own, beside an empty parameter.
EMPTY = hashlib.sha256().hexdigest()
# Every weight of the policy is multiplied by it.
FACTOR = 1.25
# Nats by which that moves tokens on average: ten times what rounding may.
LEAST_MOVE = 0.5


def check_ipc(setting: Setting) -> Iterator[Measurement]:
    """Over CUDA IPC to an engine on the policy's card."""
    return _check(setting, setting.shared(on_one_card))


def check_nccl(setting: Setting) -> Iterator[Measurement]:
    """Over NCCL to an engine on another card."""
    return _check(setting, setting.shared(apart))


def check_tensor_parallel(setting: Setting) -> Iterator[Measurement]:
    """Over CUDA IPC, from two ranks to both workers of an engine."""
    return _check(setting, setting.shared(tensor_parallel))


def check_nccl_to_tensor_parallel(setting: Setting) -> Iterator[Measurement]:
    """Over NCCL to both workers of an engine."""
    return _check(setting, setting.shared(tensor_parallel_apart))


def _check(setting: Setting, online: Online) -> Iterator[Measurement]:
    scored = probes(setting.scale.small)
    online.run(online.roles.rollout.wake_up())
    loaded = digests(online)
    sent = online.run(online.roles.policy.publish(0))
    yield _changed("weights that differ from what vLLM loads itself", loaded, online)
    before, _ = scores(online, scored)
    online.on_ranks("__ray_call__", scale_weights, FACTOR)
    online.run(online.roles.policy.publish(1))
    yield _changed("weights that are as before once all are changed", loaded, online, same=True)
    ours, theirs = scores(online, scored)
    yield Measurement(
        name="the change moves log-probabilities by",
        value=float(gaps(ours, before).mean()),
        unit="nats",
        at_least=LEAST_MOVE,
    )
    yield from agreement(ours, theirs, dtype_of(setting))
    online.on_ranks("__ray_call__", scale_weights, 1.0)
    online.run(online.roles.policy.publish(2))
    yield _changed("weights that differ once they are changed back", loaded, online)
    yield Measurement(name="publication", value=sent.num_bytes / sent.seconds / 2**30, unit="GB/s")


def scores(online: Online, scored: list[Any]) -> tuple[list[Any], list[Any]]:
    """What the first rank and the first engine make of sequences."""
    timeout_s = online.config.timeouts.call_s
    [ours, *_] = online.on_ranks("logprobs_of", scored)
    [theirs, *_] = online.on_engines("logprobs", scored, timeout_s)
    return ours, theirs


def digests(online: Online) -> dict[str, str]:
    """Of each weight as each worker of each engine holds it."""
    told = online.on_engines("ask_workers", "compute_weight_checksums")
    return {
        f"{engine}:{name}": digest
        for engine, workers in enumerate(told)
        for worker in workers
        for name, digest in worker.items()
        if digest != EMPTY
    }


def _changed(
    name: str, loaded: dict[str, str], online: Online, *, same: bool = False
) -> Measurement:
    now = digests(online)
    found = [key for key in loaded | now if (loaded.get(key) == now.get(key)) is same]
    return Measurement(
        name=f"{name}, of {len(loaded)}",
        value=len(found),
        at_most=0,
        note=", ".join(found[:3]),
    )


def scale_weights(rank: Any, factor: float) -> None:
    """Make every weight of a rank `factor` times what it was at first, its own shares as well."""
    import torch

    def parts() -> Iterator[torch.Tensor]:
        for parameter in rank.learner.lm.parameters():
            yield parameter.data
            if hasattr(parameter, "ds_tensor"):
                yield parameter.ds_tensor.data

    if not hasattr(rank, "first_weights"):
        rank.first_weights = [part.to("cpu", copy=True) for part in parts()]
    for part, first in zip(parts(), rank.first_weights, strict=True):
        part.copy_(first.to(part.device) * factor)
