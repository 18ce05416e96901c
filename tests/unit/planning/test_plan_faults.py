"""A job that fits, with one fault planted: the plan finds that fault and no other."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_jobs import (
    EIGHT_B,
    NEEDED,
    SEVENTY_B,
    SHAPES,
    job,
    laid_over,
    node,
)

from rlhf_ray.errors import ConfigError
from rlhf_ray.planning.layout import smallest_cluster
from rlhf_ray.planning.plan import plan_job

SMALL = "Qwen/Qwen2.5-0.5B"
ONLINE = ("grpo", "ppo", "sample")
NODE_GB = 500
# By the part of memory that grows too large: what makes it so, in the trained role's section.
LARGE = {
    "optimizer": {"model": {"path": SEVENTY_B}, "zero": {"stage": 1}},
    "activations": {"max_tokens_per_micro_batch": 524288},
    "logits": {"logits_chunk_tokens": 65536, "max_tokens_per_micro_batch": 131072},
}


def trained(name: str) -> str:
    return "reward" if name == "rm" else "policy"


@st.composite
def fitting(draw, names=("dpo", "grpo", "ppo", "rm", "sample", "sft")) -> tuple[str, dict]:
    """A job of a small model on GPUs of its own."""
    name = draw(st.sampled_from(names))

    def group() -> dict[str, Any]:
        return {
            "gpus_per_rank": 1,
            "ranks": draw(st.sampled_from([1, 2, 4])),
            "strategy": draw(st.sampled_from(["PACK", "SPREAD", "STRICT_PACK"])),
        }

    stage = draw(st.sampled_from([1, 2, 3]))
    model = {"path": SMALL, "gradient_checkpointing": draw(st.booleans())}
    sections = laid_over(
        NEEDED[name],
        {
            trained(name): {"model": model, "zero": {"stage": stage}},
            "placement": {trained(name): group()},
        },
    )
    if name == "dpo" or (name in ("grpo", "ppo") and draw(st.booleans())):
        sections["placement"]["reference"] = group()
    if name in ONLINE:
        if name != "sample":
            kl = 0.1 if "reference" in sections["placement"] else 0.0
            sections["algorithm"] = {"kl": {"coefficient": kl}}
        sections["prompts_per_step"], sections["samples_per_prompt"] = 512, 16
        sections["placement"]["rollout"] = group()
        if name == "ppo":
            sections["placement"]["value"] = group()
    else:
        sections["batch_size"] = 2048
    return name, sections


def plan_of(name: str, sections: dict[str, Any], **cluster: Any) -> Any:
    config = job(name, **sections)
    here = smallest_cluster(config.groups, node(node_gb=NODE_GB))
    if cluster:
        here = node(**{"nodes": here.nodes, "node_gb": NODE_GB, **cluster})
    return plan_job(config, SHAPES, here)


@settings(max_examples=100, derandomize=True)
@given(drawn=fitting(names=("dpo", "grpo", "ppo", "rm", "sft")), part=st.sampled_from(list(LARGE)))
def test_what_is_too_large_is_named(drawn, part):
    name, sections = drawn
    if name == "rm" and part == "logits":  # a classifier makes none
        part = "activations"
    assert plan_of(name, sections).problems == ()
    role = trained(name)
    fault: dict[str, Any] = {role: LARGE[part]}
    if name == "ppo":  # the critic would grow with the policy
        fault["value"] = {"model": {"path": SMALL}}
    if name == "dpo" or "reference" in sections["placement"]:
        fault["reference"] = {"model": {"path": SMALL}}
    if part == "optimizer":
        fault["placement"] = {role: {"ranks": 1}}
        if name in ("grpo", "ppo"):  # engines have the policy's model
            fault["placement"]["rollout"] = {"gpus_per_rank": 8, "ranks": 1}
    else:
        fault[role] = {**LARGE[part], "model": {"gradient_checkpointing": part == "logits"}}
    if part == "logits" and name in ONLINE:  # they exist for responses alone
        fault["rollout"] = {"max_new_tokens": 2048}
    planned = plan_of(name, laid_over(sections, fault))
    assert {(problem.role, problem.part) for problem in planned.problems} == {(role, part)}


@settings(max_examples=40, derandomize=True)
@given(
    drawn=fitting(names=ONLINE),
    fault=st.sampled_from(
        [
            ("weights", {"policy": {"model": {"path": SEVENTY_B}}}),
            ("kv_cache", {"rollout": {"gpu_memory_share": 0.05, "max_model_len": 400_000}}),
            ("kv_cache", {"rollout": {"kv_cache_gb": 0.01, "max_model_len": 32768}}),
        ]
    ),
)
def test_an_engine_without_room_for_its_cache_is_named(drawn, fault):
    name, sections = drawn
    part, change = fault
    change = laid_over(change, {})
    if "kv_cache_gb" in change.get("rollout", {}):
        change["placement"] = {"rollout": {"gpus_per_rank": 0}}
    if part == "weights":  # enough ranks for the policy and all that starts from it
        roles = [role for role in sections["placement"] if role != "rollout"]
        change["placement"] = {role: {"ranks": 64, "strategy": "PACK"} for role in roles}
        for role in roles:
            change[role] = laid_over(change.get(role, {}), {"zero": {"stage": 3}})
            if role != "reference":
                change[role] = laid_over(change[role], {"model": {"gradient_checkpointing": True}})
    else:
        change["data"] = {"max_prompt_tokens": 512}
    planned = plan_of(name, laid_over(sections, change))
    assert {(problem.role, problem.part) for problem in planned.problems} == {("rollout", part)}


@pytest.mark.parametrize(("gpus", "divides"), [(1, True), (2, True), (4, False), (8, False)])
def test_an_engine_over_whose_gpus_heads_cannot_be_split_is_named(gpus, divides):
    placement = {"policy": {"gpus_per_rank": 1}, "rollout": {"gpus_per_rank": gpus}}
    config = job("grpo", policy={"model": {"path": SMALL}}, placement=placement)
    problems = plan_job(config, SHAPES, node(nodes=2)).problems
    assert [problem.message for problem in problems] == [
        "rollout: weights with 14 heads for queries and 2 for keys and values cannot be split over "
        f"{gpus} GPUs"
    ] * (not divides)


@settings(max_examples=20, derandomize=True)
@given(drawn=fitting(names=("dpo", "grpo", "ppo", "rm", "sft")), stage=st.sampled_from([2, 3]))
def test_a_node_without_room_for_what_is_offloaded_is_named(drawn, stage):
    name, sections = drawn
    role = trained(name)
    zero = {"stage": stage, "offload_optimizer": "cpu"}
    model = {"path": EIGHT_B, "gradient_checkpointing": True}
    fault = {role: {"model": model, "zero": zero}, "placement": {role: {"strategy": "STRICT_PACK"}}}
    for other in {"reference", "value"} & sections["placement"].keys():
        fault[other] = {"model": {"path": SMALL}}
    changed = laid_over(sections, fault)
    assert plan_of(name, changed).fits
    [problem] = plan_of(name, changed, node_gb=100).problems
    assert (problem.role, problem.part) == (role, "host")


@settings(max_examples=60, derandomize=True)
@given(drawn=fitting(), data=st.data())
def test_ranks_without_a_place_are_named(drawn, data):
    name, sections = drawn
    role = trained(name)
    asked = sum(g["ranks"] * g["gpus_per_rank"] for g in sections["placement"].values())
    faults = {
        "few": ({}, {"nodes": 1, "gpus": asked - 1}, f"{asked} GPU asked, {asked - 1} there"),
        "apart": (
            {"placement": {role: {"ranks": 9, "strategy": "STRICT_SPREAD"}}},
            {"nodes": 8},
            f"9 nodes asked for the 9 ranks of {role} (STRICT_SPREAD), 8 there",
        ),
        "together": (
            {"placement": {role: {"ranks": 9, "strategy": "STRICT_PACK"}}},
            {"nodes": 8},
            f"no node has 9 GPU for all ranks of {role} (STRICT_PACK)",
        ),
    }
    if name in ONLINE:
        shared = {"share": "policy", "ranks": 1, "gpus_per_rank": 8}
        faults["guest"] = (
            {"placement": {"rollout": shared}, "publication": {"backend": "object_store"}},
            {"nodes": 8},
            "placement.rollout shares the ",
        )
        faults["wide"] = (
            {"placement": {"rollout": {"gpus_per_rank": 16, "ranks": 1}}},
            {"nodes": 8},
            "no node has 16 GPU for one rank of rollout",
        )
    change, cluster, message = faults[data.draw(st.sampled_from(sorted(faults)))]
    with pytest.raises(ConfigError) as caught:
        plan_job(job(name, **laid_over(sections, change)), SHAPES, node(**cluster))
    assert message in str(caught.value)
