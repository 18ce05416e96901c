"""Every shipped configuration fits the hardware that its first line names."""

from __future__ import annotations

import re

import pytest
from plan_jobs import EIGHT_B, ROOT, SEVENTY_B, SHAPES, advised, job, node, planned

from rlhf_ray.config.jobs import JOBS
from rlhf_ray.config.load import load_config
from rlhf_ray.planning.advice import advise_placement
from rlhf_ray.planning.changes import changed
from rlhf_ray.planning.layout import smallest_cluster
from rlhf_ray.planning.plan import plan_job
from rlhf_ray.planning.planned_job import PlannedJob
from rlhf_ray.planning.roles import model_paths

CONFIGS = [path for path in sorted((ROOT / "configs").glob("*/*.yaml")) if path.parent.name in JOBS]


def shipped(path):
    config = load_config(JOBS[path.parent.name], path)
    # Local models are made by the demo, or are the tests' own.
    shapes = {model: SHAPES.get(model, SHAPES["tiny"]) for model in model_paths(config).values()}
    return config, shapes


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_configuration_fits(path):
    config, shapes = shipped(path)
    first = path.read_text().splitlines()[0]
    memory = re.search(r"with (\d+) GB", first)
    nodes = re.search(r"(\d+) nodes", first)
    cluster = smallest_cluster(config.groups, node(gpu_gb=float(memory[1]) if memory else 80))
    plan = plan_job(config, shapes, cluster)
    assert plan.problems == ()
    assert plan.cluster.nodes == (int(nodes[1]) if nodes else 1)


def test_the_70b_policy_needs_the_memory_that_its_configuration_names():
    path = ROOT / "configs/grpo/llama3-70b-4x8gpu.yaml"
    config, shapes = shipped(path)
    assert plan_job(config, shapes, node(nodes=4, node_gb=1000)).fits
    [problem] = plan_job(config, shapes, node(nodes=4, node_gb=400)).problems
    assert (problem.role, problem.part) == ("policy", "host")


def test_70b_does_not_fit_one_gpu_for_its_optimiser_states():
    config = job(
        "sft", policy={"model": {"path": SEVENTY_B}}, placement={"policy": {"gpus_per_rank": 1}}
    )
    plan = planned(config)
    [problem] = plan.problems
    assert (problem.role, problem.part) == ("policy", "optimizer")
    assert re.match(
        r"policy needs [\d.]+ GB a rank, 788\.5 of them for optimiser states: GPU 0 of node 0 "
        r"would hold [\d.]+ of 80\.0 GB while policy updates",
        problem.message,
    )


def test_70b_weights_leave_an_engine_no_cache():
    config = job(
        "grpo",
        policy={"model": {"path": SEVENTY_B}},
        placement={"rollout": {"gpus_per_rank": 1}},
        publication={"backend": "object_store"},  # from a policy on CPUs
    )
    plan = planned(config)
    assert ("rollout", "weights") in {(problem.role, problem.part) for problem in plan.problems}
    assert {frozenset(advice.change): advice.change for advice in advised(config, plan)}[
        frozenset({"placement.rollout.gpus_per_rank"})
    ] == {"placement.rollout.gpus_per_rank": 4}


def test_ranks_on_more_nodes_are_advised_behind_what_fits_here():
    learner = {"zero": {"stage": 3}, "model": {"gradient_checkpointing": True}}
    config = job("sft", policy=learner, placement={"policy": {"gpus_per_rank": 1}})
    ways = advised(config, planned(config, node(gpus=1, nodes=1)))
    assert [(way.change, way.plan.cluster.nodes) for way in ways] == [
        ({"policy.zero.offload_optimizer": "cpu"}, 1),
        ({"placement.policy.ranks": 4}, 4),
    ]
    assert all(way.plan.fits for way in ways)


def test_what_is_advised_fits():
    config = job(
        "grpo",
        policy={"model": {"path": EIGHT_B}},
        algorithm={"kl": {"coefficient": 0.1}},
        placement={
            "policy": {"gpus_per_rank": 1},
            "reference": {"gpus_per_rank": 1, "share": "policy"},
            "rollout": {"gpus_per_rank": 1},
        },
    )
    plan = planned(config)
    assert not plan.fits
    advices = advised(config, plan)
    assert advices
    for advice in advices:
        values = config.model_dump()
        for key, value in advice.change.items():
            *above, last = key.split(".")
            section = values
            for name in above:
                section = section[name]
            section[last] = value
        again = planned(type(config).model_validate(values), advice.plan.cluster)
        assert again.fits
        assert again == advice.plan


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_on_fewer_nodes_70b_is_told_what_would_make_room(nodes):
    config, shapes = shipped(ROOT / "configs/grpo/llama3-70b-4x8gpu.yaml")
    jobs = [PlannedJob(config=config)]
    [way] = advise_placement(jobs, shapes, node(nodes=nodes))
    assert way.plan.fits
    [changed_job] = changed(jobs, way.change)
    assert plan_job(changed_job.config, shapes, node(nodes=nodes)) == way.plan


def test_there_is_no_room_for_70b_on_one_gpu():
    config, shapes = shipped(ROOT / "configs/grpo/llama3-70b-4x8gpu.yaml")
    assert advise_placement([PlannedJob(config=config)], shapes, node(gpus=1)) == []
