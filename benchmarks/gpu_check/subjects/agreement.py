"""Do engine and trainer give the same tokens the same log-probabilities?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import ray

from benchmarks.gpu_check.online import (
    ON_ONE_CARD,
    Online,
    gaps,
    on_one_card,
    online_config,
    opened,
    publish_to_all,
    requests,
)
from benchmarks.gpu_check.records import Measurement
from benchmarks.gpu_check.setting import Setting
from rlhf_ray.roles.groups import SampleId
from rlhf_ray.rollouts.feed import sample_all

# Nats a token; see `actors.roles.engines`.
LIMITS = {
    "float32": {"mean": 1e-4, "99th percentile": 1e-3, "largest": 1e-3},
    "bfloat16": {"mean": 0.05, "99th percentile": 0.2, "largest": 0.5},
}
SAMPLES, SAMPLE_TOKENS, PROMPT_TOKENS = 64, 64, 32


def in_float32(setting: Setting) -> AbstractContextManager[Online]:
    """Policy and engine on one card, both in float32."""
    return opened(setting, online_config(setting, ON_ONE_CARD, dtype="float32"))


def dtype_of(setting: Setting) -> str:
    """What `dtype: auto` is."""
    return "bfloat16" if setting.scale.on_gpu else "float32"


def check_half(setting: Setting) -> Iterator[Measurement]:
    """In the dtype that a job on a card has."""
    return _check(setting, setting.shared(on_one_card), dtype_of(setting))


def check_float32(setting: Setting) -> Iterator[Measurement]:
    """In float32, where rounding hides nothing."""
    return _check(setting, setting.shared(in_float32), "float32")


def _check(setting: Setting, online: Online, dtype: str) -> Iterator[Measurement]:
    asked = requests(
        setting.scale.small, num=SAMPLES, new_tokens=SAMPLE_TOKENS, num_tokens=PROMPT_TOKENS
    )
    ours, theirs = online.run(_sampled(online, asked))
    yield from agreement(ours, theirs, dtype)


async def _sampled(online: Online, asked: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Log-probabilities of sampled tokens: the trainer's, and those that the engine sampled by."""
    roles, timeout_s = online.roles, online.config.timeouts.call_s
    await publish_to_all(roles, 0)
    groups = await sample_all(roles.rollout, asked)
    await roles.rollout.sleep(level=2)
    ours: dict[SampleId, Any] = {}
    [scored] = await roles.policy.logprobs(groups, ["policy"])
    for of_rank in ray.get(list(scored), timeout=timeout_s):
        ours |= of_rank
    theirs = [
        rollout
        for rollouts_G in ray.get([group.rollouts for group in groups], timeout=timeout_s)
        for rollout in rollouts_G
    ]
    return [ours[r.draw, r.sample] for r in theirs], [r.logprobs_T for r in theirs]


def agreement(ours: Sequence[Any], theirs: Sequence[Any], dtype: str) -> Iterator[Measurement]:
    """Of trainer and engine, token by token."""
    distances_T = gaps(ours, theirs)
    figures = {
        "mean": distances_T.mean(),
        "99th percentile": np.quantile(distances_T, 0.99),
        "largest": distances_T.max(),
    }
    for name, value in figures.items():
        yield Measurement(
            name=f"engine and trainer in {dtype} differ by, {name}",
            value=float(value),
            unit="nats",
            at_most=LIMITS[dtype][name],
            note=f"{len(distances_T)} tokens",
        )
