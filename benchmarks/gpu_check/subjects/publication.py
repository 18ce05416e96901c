"""Do all weights arrive at the engines, bit for bit, and do both sides then agree?

What vLLM's own loader reads from the model's folder is the truth: its workers' digests of each
weight are taken before anything is published. A publication of changed weights must change them,
and one of the first weights again must bring back the very same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from actors.engines.rollout import RolloutReplica
from actors.ranks.policy import PolicyRank
from benchmarks.gpu_check.online import (
    Online,
    apart,
    digests_of,
    gaps,
    on_one_card,
    probes,
    publish_to_all,
    tensor_parallel,
    tensor_parallel_apart,
)
from benchmarks.gpu_check.records import Measurement
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.subjects.agreement import agreement, dtype_of

# Every weight of the policy is multiplied by it.
FACTOR = 1.25
# Nats by which that moves tokens on average: ten times what rounding may.
LEAST_MOVE = 0.5


def check_ipc(setting: Setting) -> Iterator[Measurement]:
    """Over CUDA IPC to an engine on the policy's card."""
    return check_arrival(setting, setting.shared(on_one_card))


def check_nccl(setting: Setting) -> Iterator[Measurement]:
    """Over NCCL to an engine on another card."""
    return check_arrival(setting, setting.shared(apart))


def check_tensor_parallel(setting: Setting) -> Iterator[Measurement]:
    """Over CUDA IPC, from two ranks to both workers of an engine."""
    return check_arrival(setting, setting.shared(tensor_parallel))


def check_nccl_to_tensor_parallel(setting: Setting) -> Iterator[Measurement]:
    """Over NCCL to both workers of an engine."""
    return check_arrival(setting, setting.shared(tensor_parallel_apart))


def check_arrival(setting: Setting, online: Online) -> Iterator[Measurement]:
    """Of the first weights, of changed ones, and of the first ones again."""
    scored, loaded = probes(setting.scale.small), online.loaded
    sent = online.run(publish_to_all(online.roles, 0))
    yield changed("weights that differ from what vLLM loads itself", loaded, online)
    before, _ = scores(online, scored)
    online.inside(online.roles.policy, scale_weights, FACTOR)
    online.run(publish_to_all(online.roles, 1))
    yield changed("weights that are as before once all are changed", loaded, online, same=True)
    ours, theirs = scores(online, scored)
    yield Measurement(
        name="the change moves log-probabilities by",
        value=float(gaps(ours, before).mean()),
        unit="nats",
        at_least=LEAST_MOVE,
    )
    yield from agreement(ours, theirs, dtype_of(setting))
    online.inside(online.roles.policy, scale_weights, 1.0)
    online.run(publish_to_all(online.roles, 2))
    yield changed("weights that differ once they are changed back", loaded, online)
    yield Measurement(name="publication", value=sent.num_bytes / sent.seconds / 2**30, unit="GB/s")


def scores(online: Online, scored: list[Any]) -> tuple[list[Any], list[Any]]:
    """What the first rank and the first engine make of sequences."""
    timeout_s = online.config.timeouts.call_s
    [ours, *_] = online.on_ranks(PolicyRank.logprobs_of, scored)
    [theirs, *_] = online.on_engines(RolloutReplica.logprobs, scored, timeout_s)
    return ours, theirs


def digests(online: Online) -> dict[str, str]:
    """Of each weight as each worker of each engine holds it."""
    return online.run(digests_of(online.roles.rollout.actors, online.config.timeouts.call_s))


def changed(
    name: str, loaded: Mapping[str, str], online: Online, *, same: bool = False
) -> Measurement:
    """How many weights of the engines are others than before, or the `same`."""
    now = digests(online)
    found = [key for key in {**loaded, **now} if (loaded.get(key) == now.get(key)) is same]
    return Measurement(
        name=f"{name}, of {len(loaded)}",
        value=len(found),
        at_most=0,
        note=", ".join(found[:3]),
    )


def scale_weights(rank: Any, factor: float) -> None:
    """Make every weight of a rank `factor` times what it was at first, its own shares as well."""
    import torch

    rank.residency.reload()

    def parts() -> Iterator[torch.Tensor]:
        for parameter in rank.learner.lm.parameters():
            yield parameter.data
            if hasattr(parameter, "ds_tensor"):
                yield parameter.ds_tensor.data

    if not hasattr(rank, "first_weights"):
        rank.first_weights = [part.to("cpu", copy=True) for part in parts()]
    for part, first in zip(parts(), rank.first_weights, strict=True):
        part.copy_(first.to(part.device) * factor)
