"""Whatever is configured, there is a plan or a reason; more ranks never need more of a GPU."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_jobs import JOBS, MODELS, SHAPES, advised, job, memory_of, node

from rlhf_ray.errors import ConfigError
from rlhf_ray.planning.layout import smallest_cluster
from rlhf_ray.planning.plan import PART_NAMES, plan_job


@st.composite
def jobs(draw):
    name = draw(st.sampled_from(sorted(JOBS)))
    models = st.sampled_from(sorted(MODELS))

    def learner(path):
        lora = draw(st.sampled_from([0, 0, 8]))
        return {
            "model": {
                "path": path,
                "dtype": draw(st.sampled_from(["auto", "float32", "bfloat16"])),
                "gradient_checkpointing": draw(st.booleans()),
                "lora": {"rank": lora},
                "quantization": draw(st.sampled_from(["none", "4bit", "8bit"])) if lora else "none",
            },
            "zero": draw(
                st.sampled_from(
                    [
                        {},
                        {"stage": 1},
                        {"stage": 2, "offload_optimizer": "cpu"},
                        {"stage": 3},
                        {"stage": 3, "offload_param": "cpu"},
                    ]
                )
            ),
            "max_tokens_per_micro_batch": draw(st.sampled_from([256, 8192, 65536])),
        }

    def group():
        return {
            "ranks": draw(st.sampled_from([1, 2, 4, 8])),
            "gpus_per_rank": draw(st.integers(0, 1)),
            "strategy": draw(st.sampled_from(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])),
        }

    trained = "reward" if name == "rm" else "policy"
    sections = {trained: learner(draw(models)), "placement": {trained: group()}}
    if name == "dpo":
        sections["placement"]["reference"] = group()
    if name in ("ppo", "grpo", "sample"):
        if name != "sample":
            sections["value"] = learner(draw(models))
        engine = {**group(), "gpus_per_rank": draw(st.sampled_from([0, 1, 2, 8]))}
        share = {
            "share": "policy",
            "gpus_per_rank": sections["placement"]["policy"]["gpus_per_rank"],
        }
        sections["placement"] |= {
            "value": draw(st.sampled_from([group(), share])),
            "rollout": draw(st.sampled_from([engine, share])),
            "reference": draw(st.sampled_from([group(), share])),
        }
        sections["rollout"] = {
            "gpu_memory_share": draw(st.sampled_from([0.1, 0.4, 0.9])),
            "max_model_len": draw(st.sampled_from([512, 8192])),
        }
        if not sections["placement"]["policy"]["gpus_per_rank"]:
            sections["publication"] = {"backend": "object_store"}
    return job(name, **sections)


@settings(max_examples=200, derandomize=True)
@given(
    config=jobs(),
    gpu_gb=st.sampled_from([16, 24, 80]),
    gpus=st.sampled_from([1, 8]),
    node_gb=st.sampled_from([0, 64, 1000]),
)
def test_every_job_has_a_plan_or_a_reason(config, gpu_gb, gpus, node_gb):
    like = node(gpus=gpus, gpu_gb=gpu_gb, node_gb=node_gb)
    try:
        plan = plan_job(config, SHAPES, smallest_cluster(config.groups, like))
    except ConfigError as error:
        assert any(role in str(error) for role in config.groups)
        return
    roles = {need.role for need in plan.roles}
    assert {place.role for place in plan.places} == roles == set(config.groups)
    for gpu in plan.gpus:
        over = gpu.total > 0.95 * plan.cluster.gpu_bytes
        assert not (over and plan.fits)
    for problem in plan.problems:
        assert problem.role in roles
        assert problem.part in PART_NAMES
        assert problem.role in problem.message
        assert PART_NAMES[problem.part] in problem.message
    if not plan.fits and len(plan.places) < 8:
        for advice in advised(config, plan):
            assert advice.change
            assert advice.plan.fits


def trained_memory(ranks=8, **settings):
    config = job(
        "sft",
        batch_size=1024,
        policy={"zero": {"stage": 3}, **settings},
        placement={"policy": {"ranks": ranks, "gpus_per_rank": 1}},
    )
    cluster = smallest_cluster(config.groups, node())
    return memory_of(plan_job(config, SHAPES, cluster), "policy")


@settings(max_examples=50)
@given(ranks=st.integers(1, 64), tokens=st.integers(1, 100_000), more=st.integers(0, 64))
def test_more_ranks_never_need_more_of_a_gpu(ranks, tokens, more):
    few = trained_memory(ranks, max_tokens_per_micro_batch=tokens)
    many = trained_memory(ranks + more, max_tokens_per_micro_batch=tokens)
    assert many.total <= few.total


@settings(max_examples=50)
@given(tokens=st.integers(1, 100_000), more=st.integers(0, 100_000), saves=st.booleans())
def test_a_larger_token_budget_never_needs_less(tokens, more, saves):
    model = {"model": {"gradient_checkpointing": saves}}
    small = trained_memory(max_tokens_per_micro_batch=tokens, **model)
    large = trained_memory(max_tokens_per_micro_batch=tokens + more, **model)
    assert large.total >= small.total


@pytest.mark.parametrize("gpus", [0, 1])
def test_no_budget_needs_less_on_a_cpu_either(gpus):
    totals = []
    for tokens in (2048, 4096, 8192, 16384, 65536):
        config = job(
            "sft",
            batch_size=1024,
            policy={"max_tokens_per_micro_batch": tokens},
            placement={"policy": {"gpus_per_rank": gpus}},
        )
        totals.append(memory_of(plan_job(config, SHAPES, node()), "policy").total)
    assert totals == sorted(totals)
