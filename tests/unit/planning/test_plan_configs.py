"""Every shipped configuration fits the hardware that its first line names."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from plan_jobs import EIGHT_B, ROOT, SEVENTY_B, SHAPES, advised, job, node, planned

from benchmarks import largest_models
from rlhf_ray.config.jobs import JOB_CONFIGS
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.tools.load import load_config
from rlhf_ray.config.tools.stages import stages_of
from rlhf_ray.memory import GIB
from rlhf_ray.planning.advice import advise_placement, changed
from rlhf_ray.planning.layout import Cluster, shown_bytes, smallest_cluster
from rlhf_ray.planning.plan import plan_job
from rlhf_ray.planning.roles import model_paths

CONFIGS = [
    path for path in sorted((ROOT / "configs").glob("*/*.yaml")) if path.parent.name in JOB_CONFIGS
]


def shipped(path):
    config = load_config(JOB_CONFIGS[path.parent.name], path)
    # Local models are made by the demo, or are the tests' own.
    shapes = {model: SHAPES.get(model, SHAPES["tiny"]) for model in model_paths(config).values()}
    return config, shapes


def named(path, pattern, otherwise=0):
    """A number in the first line."""
    found = re.search(pattern, path.read_text().splitlines()[0])
    return int(found[1]) if found else otherwise


def plan_of(path, **cluster):
    """On the hardware that the first line names."""
    config, shapes = shipped(path)
    like = Cluster(
        nodes=1,
        gpus_per_node=8,
        gpu_bytes=shown_bytes(named(path, r"with (\d+) GB", 80)),
        node_bytes=0,
    )
    return plan_job(config, shapes, smallest_cluster(config.groups, replace(like, **cluster)))


def of_configs(paths):
    return pytest.mark.parametrize(
        "path", paths, ids=lambda path: f"{path.parent.name}/{path.stem}"
    )


ON_GPUS = [path for path in CONFIGS if path.stem.endswith("gpu")]


@of_configs(CONFIGS)
def test_a_shipped_configuration_fits(path):
    plan = plan_of(path)
    assert plan.problems == ()
    assert plan.cluster.nodes == named(path, r"(\d+) nodes", 1)
    assert all(gpu.total < plan.cluster.gpu_bytes for gpu in plan.gpus)


@of_configs(ON_GPUS)
def test_the_first_line_says_what_the_plan_says(path):
    plan = plan_of(path)
    fullest = max(gpu.total for gpu in plan.gpus) / GIB
    assert named(path, r"(\d+) GB of (?:a|the) GPU") == pytest.approx(fullest, abs=1)
    assert named(path, r"(\d+) GB of (?:a|the) node") == pytest.approx(
        max(plan.host_bytes) / GIB, abs=1
    )
    roles = {place.role for place in plan.places}
    num_gpus = {role: sum(len(p.gpus) for p in plan.places if p.role == role) for role in roles}
    [most] = {count for count in num_gpus.values() if count}
    assert named(path, r"on all (\d+)", most) == most == len(plan.gpus)
    num_engines = sum(place.role == "rollout" for place in plan.places)
    assert named(path, r"(\d+) engines", min(1, num_engines)) == num_engines


@of_configs(ON_GPUS)
def test_no_gpu_idles_while_others_work(path):
    config, _ = shipped(path)
    plan = plan_of(path)
    every = {(gpu.node, gpu.gpu) for gpu in plan.gpus}
    at_work = ["rollout", "policy"] if isinstance(config, OnlineConfig) else [config.trained_role]
    for role in at_work:
        used = {(p.node, gpu) for p in plan.places if p.role == role for gpu in p.gpus}
        assert used == every


@of_configs([path for path in ON_GPUS if path.parent.name in ("grpo", "ppo")])
def test_an_engines_cache_holds_all_that_it_is_given(path):
    """Otherwise it would put sequences aside and compute their prompts again."""
    [stage] = plan_of(path).stages
    [engine] = [need for need in stage.roles if need.role == "rollout"]
    sequences = -(-stage.batches.rows // engine.group.ranks)
    together = min(sequences, engine.model.rollout.max_num_seqs)
    assert engine.cache_tokens >= together * stage.batches.row_tokens
    # All run at a time, but on a card that is small.
    assert together == sequences


def test_a_card_has_less_memory_than_it_is_sold_with():
    path = ROOT / "configs/grpo/llama3-8b-8gpu.yaml"
    assert plan_of(path).cluster.gpu_bytes < 80 * GIB
    assert 22 * GIB == shown_bytes(24) < shown_bytes(23.6) == int(23.6 * GIB)


def test_the_70b_policy_needs_the_memory_that_its_configuration_names():
    path = ROOT / "configs/grpo/llama3-70b-4x8gpu.yaml"
    needed = named(path, r"(\d+) GB of a node")
    assert plan_of(path, node_bytes=(needed + 1) * GIB).fits
    [problem] = plan_of(path, node_bytes=(needed - 2) * GIB).problems
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
    jobs = stages_of(config)
    [way] = advise_placement(jobs, shapes, node(nodes=nodes))
    assert way.plan.fits
    [changed_job] = changed(jobs, way.change)
    assert plan_job(changed_job.config, shapes, node(nodes=nodes)) == way.plan


def test_there_is_no_room_for_70b_on_one_gpu():
    config, shapes = shipped(ROOT / "configs/grpo/llama3-70b-4x8gpu.yaml")
    assert advise_placement(stages_of(config), shapes, node(gpus=1)) == []


@pytest.mark.parametrize("num_gpus", [1, 8, 32])
def test_the_readme_names_the_largest_model_that_fits(num_gpus):
    assert f"\n{largest_models.row(num_gpus)}\n" in (ROOT / "configs/README.md").read_text()
