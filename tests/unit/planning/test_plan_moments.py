"""Roles that share GPUs with engines: who holds what, moment by moment."""

from __future__ import annotations

from functools import reduce
from operator import getitem
from typing import Any

import pytest
from plan_jobs import EIGHT_B, JOBS, ROOT, SEVENTY_B, SHAPES, advised, job, node, planned

from rlhf_ray.config.tools.load import load_config
from rlhf_ray.memory import GIB, MIB, Memory
from rlhf_ray.planning.moments import Moment, moments_of
from rlhf_ray.planning.plan import Plan

HERE = {"share": "policy", "gpus_per_rank": 1}
CHECKPOINTED = {"model": {"gradient_checkpointing": True}, "zero": {"stage": 3}}
SMALL = "Qwen/Qwen2.5-0.5B"


def together(name: str = "ppo", ranks: int = 8, **sections: Any) -> Plan:
    """Every role of a job on the same GPUs of one node."""
    here = {**HERE, "ranks": ranks}
    roles = ("reference", "value", "rollout") if name == "ppo" else ("reference", "rollout")
    config = job(
        name,
        **{
            "policy": CHECKPOINTED,
            "value": CHECKPOINTED,
            "reference": {"zero": {"stage": 3}},
            "algorithm": {"kl": {"coefficient": 0.1}},
            "placement": {
                "policy": {"gpus_per_rank": 1, "ranks": ranks},
                **dict.fromkeys(roles, here),
            },
            **sections,
        },
    )
    return planned(config, node(nodes=1))


def moment(plan: Plan, role: str, turn: str) -> Moment:
    on_gpus = [need for need in plan.roles if need.group.gpus_per_rank]
    [found] = [one for one in moments_of(on_gpus) if (one.role, one.turn) == (role, turn)]
    return found


def parts(memory: Memory) -> set[str]:
    return {part for part, size in memory.parts.items() if size}


PROCESS, LOADED = {"process"}, {"process", "weights"}


def test_engines_generate_alone():
    generate = moment(together(), "rollout", "generate").memories
    assert "kv_cache" in parts(generate["rollout"])
    assert all(parts(generate[role]) == PROCESS for role in ("policy", "reference", "value"))


@pytest.mark.parametrize("busy", ["policy", "reference", "value"])
def test_whoever_scores_has_its_weights_and_a_pass(busy):
    score = moment(together(), busy, "score").memories
    # Each layer is gathered from all ranks.
    logits = set() if busy == "value" else {"logits"}
    assert parts(score[busy]) == LOADED | {"activations", "buffers"} | logits
    others = {"policy", "reference", "value"} - {busy}
    assert all(parts(score[role]) == LOADED for role in others)
    assert parts(score["rollout"]) == PROCESS


@pytest.mark.parametrize(("busy", "other"), [("policy", "value"), ("value", "policy")])
def test_one_role_at_a_time_has_its_optimiser_states(busy, other):
    update = moment(together(), busy, "update").memories
    assert {"weights", "gradients", "optimizer", "activations"} < parts(update[busy])
    assert parts(update[other]) == LOADED
    assert parts(update["reference"]) == parts(update["rollout"]) == PROCESS


def test_the_policys_weights_and_the_engines_meet_without_cache_and_states():
    publish = moment(together(), "policy", "publish").memories
    assert parts(publish["rollout"]) == LOADED | {"buffers"}
    assert parts(publish["policy"]) == LOADED | {"activations", "logits", "buffers"}
    assert parts(publish["value"]) == parts(publish["reference"]) == PROCESS


def test_a_bucket_is_on_both_sides_of_a_publication():
    def held(bucket_mb: int) -> int:
        path = {"model": {"path": SMALL}}
        plan = together(policy=path, value=path, publication={"bucket_mb": bucket_mb})
        return moment(plan, "policy", "publish").total

    assert held(1024) - held(512) == 2 * 512 * MIB
    # The embedding goes in one piece.
    embedding = 2 * SHAPES[SMALL].num_embedding
    assert held(512) - held(1) == 2 * (512 * MIB - embedding)


def test_apart_from_engines_every_role_stays_where_it_is():
    here = {**HERE, "ranks": 8}
    alone = {"gpus_per_rank": 1, "ranks": 8}
    places = {"policy": alone, "reference": here, "value": here, "rollout": alone}
    config = job(
        "ppo",
        **{role: {"zero": {"stage": 3}} for role in ("policy", "reference", "value")},
        placement=places,
    )
    plan = planned(config)
    learners = [need for need in plan.roles if need.role in ("policy", "reference", "value")]
    moments = {(one.role, one.turn): one.memories for one in moments_of(learners)}
    update = moments["policy", "update"]
    assert {"weights", "optimizer"} < parts(update["value"])
    assert parts(update["reference"]) == LOADED
    [engine] = [need for need in plan.roles if need.role == "rollout"]
    [generate, receive] = moments_of([engine])
    assert receive.memories["rollout"].kv_cache == generate.memories["rollout"].kv_cache


def test_the_worst_moment_is_the_largest_of_all():
    plan = together(rollout={"gpu_memory_share": 0.3})
    on_gpus = [need for need in plan.roles if need.group.gpus_per_rank]
    every = moments_of(on_gpus)
    assert {gpu.total for gpu in plan.gpus} == {max(one.total for one in every)}
    assert {gpu.moment.turn for gpu in plan.gpus} == {"update"}
    larger = together(rollout={"gpu_memory_share": 0.9})
    assert {gpu.moment.turn for gpu in larger.gpus} == {"generate"}


def test_a_node_holds_what_leaves_its_gpus():
    """What each rank has on its GPU between steps, but for gradients."""

    def on_node(rollout: dict[str, Any]) -> dict[str, int]:
        placement = {
            "policy": {"gpus_per_rank": 1, "ranks": 4},
            "reference": {**HERE, "ranks": 4},
            "rollout": {"gpus_per_rank": 1, "ranks": 4, **rollout},
        }
        [host] = together("grpo", placement=placement).hosts
        return dict(host)

    apart, shared = on_node({}), on_node({"share": "policy"})
    num = SHAPES[EIGHT_B].num_parameters("lm")
    assert shared["policy"] - apart["policy"] == pytest.approx((2 + 12) * num, rel=1e-6)
    assert shared["reference"] - apart["reference"] == pytest.approx(2 * num, rel=1e-6)
    # The engine's, while all of them are needed for a checkpoint.
    assert shared["rollout"] - apart["rollout"] == 4 * 2 * num


@pytest.mark.parametrize("share", [0.6, 0.7, 0.85])
def test_8b_fits_eight_gpus_with_every_role_on_all_of_them(share):
    plan = together(rollout={"gpu_memory_share": share})
    assert plan.problems == ()


@pytest.mark.parametrize("gpus", [4, 8])
def test_70b_fits_32_gpus_with_every_role_on_all_of_them(gpus):
    here = {**HERE, "ranks": 32}
    config = job(
        "grpo",
        policy={
            "model": {"path": SEVENTY_B, "gradient_checkpointing": True},
            "zero": {"stage": 3},
        },
        reference={"zero": {"stage": 3}},
        algorithm={"kl": {"coefficient": 0.1}},
        rollout={"gpu_memory_share": 0.7},
        placement={
            "policy": {"gpus_per_rank": 1, "ranks": 32},
            "reference": here,
            "rollout": {"share": "policy", "ranks": 32 // gpus, "gpus_per_rank": gpus},
        },
    )
    plan = planned(config, node(nodes=4, node_gb=1000))
    assert plan.problems == ()
    [policy] = [need for need in plan.roles if need.role == "policy"]
    update = policy.turns["update"]
    num = SHAPES[SEVENTY_B].num_parameters("lm")
    assert update.weights + update.optimizer == pytest.approx(14 * num / 32, rel=1e-3)
    assert (update.weights + update.optimizer) / GIB == pytest.approx(28.8, abs=0.1)


def test_a_moment_that_does_not_fit_is_named():
    plan = together(
        "grpo",
        policy={"zero": {"stage": 3}, "max_tokens_per_micro_batch": 131072},
        prompts_per_step=512,
    )
    [problem] = [one for one in plan.problems if one.role == "policy"]
    assert problem.part == "activations"
    assert "GB while policy updates (policy " in problem.message


def test_an_engine_that_lives_with_the_policy_is_split_where_its_weights_leave_no_cache():
    config = job(
        "grpo",
        policy=CHECKPOINTED,
        rollout={"gpu_memory_share": 0.2},
        placement={
            "policy": {"gpus_per_rank": 1, "ranks": 8},
            "rollout": {**HERE, "ranks": 8},
        },
    )
    plan = planned(config, node(nodes=1))
    assert [problem.part for problem in plan.problems] == ["weights"]
    changes = [advice.change for advice in advised(config, plan)]
    split = {"placement.rollout.gpus_per_rank": 2, "placement.rollout.ranks": 4}
    assert split in changes


def test_what_is_advised_together_leaves_no_key_as_it_is():
    config = load_config(JOBS["grpo"], ROOT / "configs/grpo/llama3-8b-8gpu.yaml")
    plan = planned(config, node(nodes=1, gpu_gb=22))
    [advice] = advised(config, plan)
    values = config.model_dump()
    assert len(advice.change) > 1
    for key, value in advice.change.items():
        assert value != reduce(getitem, key.split("."), values)
