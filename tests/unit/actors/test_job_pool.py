"""A job's roles on a resident pool: what each specification becomes, and what the pool is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_pools import RecordingPool

from actors.cluster.role_handle import RoleHandle
from actors.engines.replica_set import ReplicaSet
from actors.ranks.experience import ExperienceGroup
from actors.ranks.group import SupervisedGroup
from actors.ranks.policy import PolicyGroup
from actors.ranks.reference import ReferenceGroup
from actors.ranks.reward import RewardGroup
from actors.ranks.value import ValueGroup
from actors.roles import job_pool, start
from actors.roles.job_pool import JobPool
from actors.roles.lasting import Lasting, LastingPolicy
from rlhf_ray.config.online import PpoConfig
from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.config.supervised import RmConfig
from rlhf_ray.jobs.online import OnlineData, specs
from rlhf_ray.jobs.pool import Pool
from rlhf_ray.specs import ExperienceSpec, SupervisedSpec


@pytest.fixture
def resident(monkeypatch: pytest.MonkeyPatch) -> Any:
    pool = RecordingPool()

    async def start_actors(where: Any, groups: Any, specs: Any) -> Any:
        assert where is pool
        pool.asked.append(("start", *sorted(groups)))
        return {role: RoleHandle(role, {f"job/{role}/0": None}) for role in specs}

    monkeypatch.setattr(job_pool, "start_actors", start_actors)
    monkeypatch.setattr(start, "engine_spec", lambda *jobs: jobs[0].job)
    return pool


def ppo(run_dir: Path, **settings: Any) -> PpoConfig:
    return PpoConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "data": {"path": "org/prompts"},
            "policy": {"model": {"path": "org/start"}},
            "reward": {"model": {"path": "org/judge"}},
            "checkpoint": {"export": "each"},
            **settings,
        }
    )


DATA: Any = OnlineData(
    prompts=[], eval_prompts=[], end_token_ids=(9,), vocabulary="v", tokenizer=None
)


async def test_a_specification_becomes_a_role_with_its_model(resident: Any, tmp_path: Path) -> None:
    config = ppo(tmp_path)
    pool = JobPool(resident, config)
    is_a_pool: Pool = pool
    await is_a_pool.start()
    loaded = {role: await pool.load(role, spec) for role, spec in specs(config, DATA).items()}
    kinds = {
        "rollout": ReplicaSet,
        "policy": PolicyGroup,
        "reward": RewardGroup,
        "reference": ReferenceGroup,
        "value": ValueGroup,
    }
    roles = {role: vars(group).get("_role", group) for role, group in loaded.items()}
    assert {role: type(of_pool) for role, of_pool in roles.items()} == kinds
    assert loaded["policy"].exports_with == str(tmp_path / "tokenizer")
    assert loaded["value"].exports_with == ""
    assert loaded["reward"].weights == {"model": 1.0}
    assert loaded["rollout"].ending.end_token_ids == (9,)
    assert resident.asked == [
        ("start", "policy", "reference", "reward", "rollout", "value"),
        ("make_room", "experience", "policy", "reference", "reward", "rollout", "value"),
        ("load", "policy", "org/start", False),
        ("load", "reward", "org/judge", False),
        ("load", "reference", "org/start", False),
        ("load", "value", "org/start", False),
    ]
    experience = ExperienceSpec(
        algorithm=config.algorithm,
        shaping=config.reward.shaping,
        max_new_tokens=8,
        reward_weights={},
    )
    built = await pool.load("experience", experience)
    assert isinstance(vars(built)["_role"], ExperienceGroup)


async def test_roles_on_the_engines_gpus_leave_them(resident: Any, tmp_path: Path) -> None:
    gpu = {"gpus_per_rank": 1}
    beside = {**gpu, "share": "policy"}
    config = ppo(
        tmp_path,
        placement={"policy": gpu, "rollout": beside, "value": beside, "reference": gpu},
    )
    pool = JobPool(resident, config)
    await pool.start()
    loaded = {role: await pool.load(role, spec) for role, spec in specs(config, DATA).items()}
    assert loaded["rollout"].sleeps
    leave = {"policy": True, "value": True, "reference": False, "reward": False}
    groups = {**loaded, "reward": loaded["reward"].model}
    assert {role: groups[role].leaves for role in leave} == leave
    assert {role: leaves for _, role, _, leaves in resident.asked[2:]} == leave


async def test_a_reward_model_is_trained_where_it_scores(resident: Any, tmp_path: Path) -> None:
    config = RmConfig.model_validate(
        {
            "run_dir": str(tmp_path),
            "data": {"path": "org/pairs"},
            "reward": {"model": {"path": "org/start"}},
        }
    )
    pool = JobPool(resident, config)
    await pool.start()
    spec = SupervisedSpec(job=config, total_steps=1, replay_folder="")
    role = await pool.load("reward", spec)
    assert isinstance(vars(role)["_role"], SupervisedGroup)
    assert role.config is config.reward
    await pool.finish()
    await pool.unload("reward")
    assert resident.asked[2:] == [
        ("load", "reward", "org/start", False),
        ("finish", "reward", str(tmp_path / "tokenizer")),
        ("unload", "reward"),
    ]
    assert (await pool.usage()).metrics["wait/reward"] == 0.0


@pytest.mark.parametrize(
    ("reward", "actors"),
    [
        ({"functions": [{"path": "rewards.py:f"}]}, {"reward_worker"}),
        ({"remote": {"url": "http://judge"}}, {"reward_worker"}),
        ({"model": {"path": "org/judge"}}, {"reward"}),
        (
            {"functions": [{"path": "rewards.py:f"}], "model": {"path": "org/judge"}},
            {"reward", "reward_worker"},
        ),
    ],
    ids=["functions", "remote", "model", "functions and model"],
)
def test_only_a_reward_model_needs_ranks(
    reward: dict[str, Any], actors: set[str], resident: Any, tmp_path: Path
) -> None:
    config = ppo(tmp_path).model_dump() | {"reward": reward}
    job = PpoConfig.model_validate(config)
    specs = start.role_specs(job.groups, job)
    assert specs.keys() - {"policy", "reference", "value", "rollout", "experience"} == actors
    assert {"reward", "reward_worker"} & job.groups.keys() == actors


async def test_a_policy_that_nobody_trains_is_asked_again_where_it_died(
    resident: Any, tmp_path: Path
) -> None:
    """Sampling loses nothing with it: it is loaded as it was."""
    config = SampleConfig.model_validate(
        {
            "run_dir": str(tmp_path),
            "data": {"path": "org/prompts"},
            "policy": {"model": {"path": "org/start"}},
            "reward": {"functions": [{"path": "rewards.py:f"}]},
        }
    )
    pool = JobPool(resident, config)
    await pool.start()
    loaded = await pool.load("policy", specs(config, DATA)["policy"])
    assert type(loaded) is Lasting
    trained = JobPool(resident, ppo(tmp_path))
    await trained.start()
    loaded = await trained.load("policy", specs(ppo(tmp_path), DATA)["policy"])
    assert type(loaded) is LastingPolicy
