"""Does a learner take what `rlhf-ray plan` says that it takes?"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.learners import experience, plan_of, policy_learner
from benchmarks.gpu_check.machine import used_gb
from benchmarks.gpu_check.online import ON_ONE_CARD, online_config
from benchmarks.gpu_check.records import Measurement
from benchmarks.gpu_check.setting import Setting
from rlhf_ray.memory import GIB
from rlhf_ray.models.shape import read_shapes
from rlhf_ray.planning.layout import FREE_SHARE, Cluster
from rlhf_ray.planning.needs import RoleNeed
from rlhf_ray.planning.plan import plan_job
from rlhf_ray.planning.roles import model_paths

# Planned by measured. A plan leaves a share of the card free; what it overstates is not used. The
# CPU's heap has holes, which differ from run to run.
AT_LEAST, AT_LEAST_ON_CPU, AT_MOST = 1.0 - FREE_SHARE, 0.85, 1.3
ROWS, PROMPT_SHARE = 32, 4


def check_learner(setting: Setting) -> Iterator[Measurement]:
    """Its passes at the token budget and its step: tensors, and on a card all that is used."""
    scale = setting.scale
    num_tokens = scale.sequence_tokens["4k"] // PROMPT_SHARE
    num_prompt = num_tokens // PROMPT_SHARE
    settings = {
        "max_tokens_per_micro_batch": scale.micro_batch_tokens,
        "logits_chunk_tokens": min(1024, num_tokens),
    }
    config = online_config(
        setting,
        {"policy": ON_ONE_CARD["policy"], "rollout": {"gpus_per_rank": 1}},
        shape=scale.large,
        policy=settings,
        data={"max_prompt_tokens": num_prompt},
        rollout={"max_new_tokens": num_tokens - num_prompt, "max_model_len": num_tokens},
        prompts_per_step=ROWS // 2,
    )
    planned = needs_of(config, setting, num_gpus=2)["policy"].turns["update"]
    rows = experience(
        scale.large,
        prompts=[num_prompt] * ROWS,
        responses=[num_tokens - num_prompt] * ROWS,
    )
    before = _before(setting)
    with policy_learner(setting, scale.large, **settings) as learner:
        plan = plan_of(rows, learner.spec.learner)
        [minibatch] = plan.minibatches
        rollouts = [row.rollout for row in rows]
        for _ in range(2):  # Adam's states come with the first step
            learner.logprobs(rollouts, minibatch.micro_batches_by_rank)
            learner.update(rows, plan, 0.0)
        tensors = _peak_bytes(setting) - before
        least = AT_LEAST if scale.on_gpu else AT_LEAST_ON_CPU
        yield ratio("tensors", planned.total - planned.process, tensors, at_least=least)
        if scale.on_gpu:
            used = (used_gb(setting.cards[0]) - setting.cards[0].used_gb) * GIB
            yield ratio("all of the card", planned.total, used, at_least=least)


def needs_of(config: Any, setting: Setting, *, num_gpus: int) -> dict[str, RoleNeed]:
    """What the plan says of each role on cards like this one."""
    gpu_bytes = int(setting.cards[0].memory_gb * GIB) if setting.cards else 0
    cluster = Cluster(nodes=1, gpus_per_node=num_gpus if setting.cards else 0, gpu_bytes=gpu_bytes)
    plan = plan_job(config, read_shapes(model_paths(config), []), cluster)
    return {need.role: need for need in plan.roles}


def ratio(what: str, planned: float, measured: float, *, at_least: float) -> Measurement:
    """Of bytes."""
    return Measurement(
        name=f"planned by measured: {what}",
        value=planned / measured,
        at_least=at_least,
        at_most=AT_MOST,
        note=f"{planned / GIB:.2f} by {measured / GIB:.2f} GB",
    )


def _before(setting: Setting) -> float:
    """What is there already; the largest from now on counts."""
    if setting.scale.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident set begins anew
    return _peak_bytes(setting)


def _peak_bytes(setting: Setting) -> float:
    if setting.scale.on_gpu:
        return float(torch.cuda.max_memory_allocated())
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    [kilobytes] = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return float(kilobytes) * 1024
