"""What is set in vain is said before the job starts."""

import pytest

from rlhf_ray.config.checks.unused import unused_settings
from rlhf_ray.config.jobs import JOB_CONFIGS
from rlhf_ray.config.tools.load import load_config

DATA = {"data": {"path": "org/rows"}}
POLICY = {"policy": {"model": {"path": "org/model"}}}
ONLINE = {**DATA, **POLICY, "reward": {"functions": [{"path": "m:f"}]}}


def unused(job, **values):
    needed = ONLINE if job in ("ppo", "grpo") else {**DATA, **POLICY}
    return unused_settings(JOB_CONFIGS[job].model_validate({**needed, **values}))


def policy(**settings):
    return {"model": {"path": "org/model", **settings.pop("model", {})}, **settings}


@pytest.mark.parametrize(
    ("job", "values", "said"),
    [
        ("grpo", {"reference": {"model": {"path": "x/y"}}}, "reference.model.path (algorithm.kl"),
        ("grpo", {"value": {"model": {"path": "x/y"}}}, "value.model.path (advantage grpo has no"),
        ("sft", {"policy": policy(optim={"min_lr_share": 0.1})}, "policy.optim.min_lr_share (sch"),
        ("sft", {"policy": policy(model={"lora": {"alpha": 4}})}, "policy.model.lora (its rank is"),
        ("sft", {"policy": policy(optim={"warmup_steps": 100})}, "policy.optim.schedule (its 100"),
        ("grpo", {"total_steps": 2, "policy": policy(optim={"warmup_steps": 2})}, "2 optimiser"),
        (
            "ppo",  # 12 optimiser steps of the critic, of which the policy takes part in 8
            {
                "total_steps": 3,
                "value": {"warmup_steps": 1},
                "policy": policy(optim={"warmup_steps": 8}),
            },
            "policy.optim.schedule (its 8 warmup_steps are not over in the job's 8",
        ),
        ("ppo", {"total_steps": 1, "value": {"optim": {"warmup_steps": 4}}}, "value.optim.sched"),
        (
            "grpo",
            {"algorithm": {"policy_loss": "sapo", "clip_high": 0.3}},
            "algorithm.clip_high (p",
        ),
        ("grpo", {"algorithm": {"policy_loss": "cispo", "dual_clip": 3}}, "algorithm.dual_clip"),
        ("grpo", {"algorithm": {"sapo_temperature_negative": 2}}, "negative (policy_loss ppo)"),
        ("grpo", {"algorithm": {"lam": 1.0}}, "algorithm.lam (advantage grpo has no critic)"),
        ("grpo", {"algorithm": {"gamma": 0.9}}, "algorithm.gamma (advantage grpo)"),
        ("grpo", {"algorithm": {"correction": {"low": 0.1}}}, "correction.low (correction.kind t"),
        ("ppo", {"algorithm": {"kl": {"target": 1.0}}}, "kl.target (kl.controller fixed)"),
        ("dpo", {"loss_type": ["simpo"], "reference": {"model": {"path": "x/y"}}}, "reference.mo"),
        ("dpo", {"loss_type": ["orpo"], "reference_kind": "precomputed"}, "reference_kind precom"),
        (
            "ppo",
            {
                "policy": policy(model={"lora": {"rank": 2}}),
                "placement": {"reference": {"share": "policy"}},
            },
            "placement.reference (the policy without its adapter is the reference",
        ),
        (
            "dpo",
            {
                "policy": policy(model={"lora": {"rank": 2}}),
                "reference": {"model": {"dtype": "float32"}},
            },
            "reference (the policy without its adapter is the reference",
        ),
        (
            "grpo",
            {"placement": {"rollout": {"share": "policy", "strategy": "SPREAD"}}},
            "placement.rollout.strategy (it lives with policy)",
        ),
    ],
)
def test_it_is_named_with_the_reason(job, values, said):
    [told] = unused(job, **values)
    assert said in told


@pytest.mark.parametrize(
    ("job", "values"),
    [
        ("grpo", {}),
        ("grpo", {"algorithm": {"policy_loss": "cispo", "clip_high": 5, "clip_low": 1}}),
        ("grpo", {"algorithm": {"correction": {"kind": "mask", "low": 0.1, "cap": 3}}}),
        ("ppo", {"algorithm": {"gamma": 0.9, "lam": 1, "kl": {"controller": "adaptive"}}}),
        ("ppo", {"reference": {"model": {"path": "x/y"}}, "value": {"model": {"path": "x/y"}}}),
        ("sft", {"policy": policy(optim={"min_lr_share": 0.1, "schedule": "cosine"})}),
        ("sft", {"policy": policy(model={"lora": {"alpha": 4, "rank": 2}})}),
        ("sft", {"policy": policy(optim={"warmup_steps": 99})}),
        ("sft", {"epochs": 1, "policy": policy(optim={"warmup_steps": 500})}),
    ],
)
def test_what_is_looked_at_is_not(job, values):
    assert unused(job, **values) == []


@pytest.mark.parametrize("job", ["sft", "dpo", "rm", "grpo", "ppo", "sample"])
def test_shipped_configurations_set_nothing_in_vain(job):
    assert unused_settings(load_config(JOB_CONFIGS[job], f"configs/{job}/tiny-cpu.yaml")) == []
