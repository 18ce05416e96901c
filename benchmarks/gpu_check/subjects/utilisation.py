"""How much of a card's peak the learner reaches, at several lengths of its sequences.

Counted as `perf/mfu` of a job is, attention included, passes that are computed again left out.
Beside it stands what prime-rl publishes for one H100 (benchmarks/baselines in its repository:
Qwen3-0.6B, all weights, activations recomputed, FlashAttention 3; counted with causal attention).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu_check.learners import experience, plan_of, policy_learner
from benchmarks.gpu_check.records import Measurement
from benchmarks.gpu_check.setting import Setting
from rlhf_ray.learner.work import update_flops
from rlhf_ray.loops.report import utilisation
from rlhf_ray.metrics.usage import update_mfu
from rlhf_ray.roles.reports import Hardware

# Below that something other than arithmetic takes the time: a slow kernel, the CPU, copies.
LEAST_MFU = 0.10
PRIME_RL = {"16k": 0.111, "64k": 0.268}
# The dearest to keep is not kept, where a sequence is as long as this share of the longest.
CHECKPOINTED = "64k"
STEP_MICRO_BATCHES, STEPS = 4, 2


def check_utilisation(setting: Setting, name: str) -> Iterator[Measurement]:
    """Of whole optimiser steps, after one that warms up."""
    scale = setting.scale
    length = scale.sequence_tokens[name]
    num_rows = max(2, STEP_MICRO_BATCHES * scale.micro_batch_tokens // length)
    rows = experience(scale.large, prompts=[1] * num_rows, responses=[length - 1] * num_rows)
    model = {"gradient_checkpointing": name == CHECKPOINTED}
    with policy_learner(
        setting, scale.large, model=model, max_tokens_per_micro_batch=scale.micro_batch_tokens
    ) as learner:
        plan = plan_of(rows, learner.spec.learner)
        skipped = learner.update(rows, plan, 0.0)["skipped_steps"]
        _synchronize(scale.on_gpu)
        began_s = time.monotonic()
        for _ in range(STEPS):
            skipped += learner.update(rows, plan, 0.0)["skipped_steps"]
        _synchronize(scale.on_gpu)
        seconds = time.monotonic() - began_s
        flops = update_flops(learner.lm)
        attention = learner.model.mode.attention
    yield Measurement(name="skipped steps", value=skipped, at_most=0)
    num_flops = STEPS * flops.of([length] * num_rows, num_scored=num_rows * (length - 1))
    hardware = Hardware(
        flops=flops,
        device_name=torch.cuda.get_device_name() if scale.on_gpu else "cpu",
        num_devices=1,
    )
    for share in utilisation(hardware, num_flops=num_flops, seconds=seconds).values():
        published = f"; prime-rl: {PRIME_RL[name]:.3f}" if name in PRIME_RL else ""
        yield Measurement(
            name="mfu", value=share, at_least=LEAST_MFU, note=f"{attention}{published}"
        )
    yield Measurement(
        name="arithmetic",
        value=update_mfu(num_flops=num_flops, seconds=seconds, num_devices=1, peak=1e12),
        unit="TFLOP/s",
    )
    rate = STEPS * num_rows * length / seconds
    yield Measurement(name="learner", value=rate, unit="tokens/s")
    if scale.on_gpu:
        peak_gb = torch.cuda.max_memory_allocated() / 2**30
        yield Measurement(name="memory of tensors, at most", value=peak_gb, unit="GB")


check_4k = partial(check_utilisation, name="4k")
check_16k = partial(check_utilisation, name="16k")
check_64k = partial(check_utilisation, name="64k")


def _synchronize(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()
