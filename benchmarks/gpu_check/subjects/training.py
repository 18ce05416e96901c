"""Two steps of PPO, every role on one card, under each ZeRO stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from actors.roles.job_pool import JobPool
from benchmarks.gpu_check.online import ON_ONE_CARD, on_one_card, online_config
from benchmarks.gpu_check.records import Measurement
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.subjects.agreement import LIMITS, dtype_of
from launch.run.folder import run_folder
from rlhf_ray.config.online import PpoConfig
from rlhf_ray.jobs.online import PPO

STAGES = {"cuda": (0, 2, 3), "cpu": (0,)}


def check_ppo(setting: Setting) -> Iterator[Measurement]:
    """Every step is taken, engine and trainer agree after each, and the exported weights moved."""
    session = setting.shared(on_one_card)
    for stage in STAGES[setting.scale.device]:
        zero = {"zero": {"stage": stage}}
        config = online_config(
            setting,
            ON_ONE_CARD,
            kind=PpoConfig,
            run_dir=str(setting.folder / f"ppo-{stage}"),
            policy=zero,
            value={**zero, "optim": {"lr": 1e-4}},
            reference={"zero": {"stage": 3 if stage == 3 else 0}},
        )
        job = PPO.prepare(config)
        with run_folder(config) as folder:
            session.run(job.run(JobPool(session.pool, config)))
        yield from _measurements(config, folder, dtype_of(setting))


def _measurements(config: PpoConfig, folder: Path, dtype: str) -> Iterator[Measurement]:
    stage = config.policy.zero.stage
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines][1:]
    yield Measurement(name=f"ZeRO {stage}: steps", value=len(steps), at_least=config.total_steps)
    yield Measurement(
        name=f"ZeRO {stage}: skipped steps",
        value=sum(s["policy/skipped_steps"] + s["value/skipped_steps"] for s in steps),
        at_most=0,
    )
    for kind, name in (("mean", "mean"), ("max", "largest")):
        yield Measurement(
            name=f"ZeRO {stage}: engine and trainer differ by, {name}",
            value=max(step[f"mismatch/logprob_abs_{kind}"] for step in steps),
            unit="nats",
            at_most=LIMITS[dtype][name],
        )
    before = load_file(Path(config.policy.model.path) / "model.safetensors")
    after = load_file(folder / "export" / "model.safetensors")
    same = [name for name in before if torch.equal(before[name], after[name].to(before[name]))]
    yield Measurement(
        name=f"ZeRO {stage}: weights that did not move",
        value=len(same),
        at_most=len(before) // 2,  # a few steps of Adam may stay below a bfloat16 number's next
        note=", ".join(same[:3]),
    )
