"""Does a learner that leaves its card for the host come back with the same numbers?"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu_check.learners import experience, plan_of, policy_learner
from benchmarks.gpu_check.online import gaps, probes
from benchmarks.gpu_check.records import Measurement
from benchmarks.gpu_check.scale import Shape
from benchmarks.gpu_check.setting import Setting
from rlhf_ray.learner.policy import PolicyLearner

# Of what the learner held.
MOST_LEFT = 0.01
# A step's gradient is summed in any order on a GPU: the norms of two runs differ in last bits.
NORM_LIMIT = 1e-2
STAGES = {"cuda": (0, 2, 3), "cpu": (0,)}
# On the CPU as well: float32 weights lie there in the file that they are mapped from, and stay.
MODEL = {"dtype": "bfloat16"}
LORA = {"lora": {"rank": 8, "alpha": 16.0}}


def check_learner(setting: Setting) -> Iterator[Measurement]:
    """Under each ZeRO stage, and with adapters, between two steps of training."""
    for stage in STAGES[setting.scale.device]:
        learner = {"model": MODEL, "zero": {"stage": stage}}
        yield from _check(setting, f"ZeRO {stage}", learner)
    if setting.scale.on_gpu:
        yield from _check(setting, "adapters", {"model": {**MODEL, **LORA}})


def _check(setting: Setting, name: str, learner: dict[str, Any]) -> Iterator[Measurement]:
    shape = setting.scale.large
    stayed = _norm_of_second_step(setting, shape, learner)
    empty = _allocated(setting)
    with policy_learner(setting, shape, **learner) as left:
        _step(left, shape)
        before = _scores(left, shape)
        held = _allocated(setting) - empty
        began_s = time.monotonic()
        left.engine.residency.offload()
        away_s = time.monotonic() - began_s
        if setting.scale.on_gpu:
            yield Measurement(
                name=f"{name}: of its memory, what stays on the card",
                value=(_allocated(setting) - empty) / held,
                at_most=MOST_LEFT,
                note=f"{held / 2**30:.2f} GB",
            )
        began_s = time.monotonic()
        left.engine.residency.reload()
        back_s = time.monotonic() - began_s
        yield Measurement(
            name=f"{name}: log-probabilities change by",
            value=float(gaps(_scores(left, shape), before).max()),
            unit="nats",
            at_most=0.0,
        )
        yield Measurement(
            name=f"{name}: the next step's gradient norm changes by",
            value=abs(_step(left, shape) / stayed - 1.0),
            at_most=NORM_LIMIT,
        )
        yield Measurement(name=f"{name}: away and back", value=away_s + back_s, unit="s")


def _norm_of_second_step(setting: Setting, shape: Shape, learner: dict[str, Any]) -> float:
    """Of a learner that never leaves."""
    with policy_learner(setting, shape, **learner) as stays:
        _step(stays, shape)
        return _step(stays, shape)


def _step(learner: PolicyLearner, shape: Shape) -> float:
    rows = experience(shape, prompts=[8] * 8, responses=[56] * 8)
    return float(learner.update(rows, plan_of(rows, learner.spec.learner), 0.0)["grad_norm"])


def _scores(learner: PolicyLearner, shape: Shape) -> list[Any]:
    scored = probes(shape, num=4, num_tokens=64)
    return learner.logprobs(scored, ((tuple(range(len(scored))),),), temperature=1.0)


def _allocated(setting: Setting) -> int:
    gc.collect()
    return torch.cuda.memory_allocated() if setting.scale.on_gpu else 0
