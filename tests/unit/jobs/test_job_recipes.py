"""What each kind of job asks of its pool, in which order, and what a failure leaves undone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_pool import FakeLoop, FakePool, FakeTokenizer

from rlhf_ray.config.jobs import JOB_CONFIGS
from rlhf_ray.config.learners import ReferenceConfig
from rlhf_ray.errors import ConfigError, RunError
from rlhf_ray.jobs.job import PreparedJob
from rlhf_ray.jobs.on_rows import SupervisedData
from rlhf_ray.jobs.online import OnlineData
from rlhf_ray.jobs.rm import RmData
from rlhf_ray.jobs.sft import SftData
from rlhf_ray.jobs.table import JOBS
from rlhf_ray.loops.checkpoints import CheckpointStore
from rlhf_ray.loops.setup import setup_of
from rlhf_ray.specs import (
    ExperienceSpec,
    PolicySpec,
    ReferenceSpec,
    RewardSpec,
    RolloutSpec,
    SupervisedSpec,
    ValueSpec,
    model_path_of,
)
from rlhf_ray.types import Prompt, Ranking, SftExample


def ids(*tokens: int) -> Any:
    return np.array(tokens, dtype=np.int32)


EXAMPLES = [
    SftExample(example_id=f"e{n}", token_ids_T=ids(1, 2), trained_T=np.ones(2, dtype=bool))
    for n in range(4)
]
RANKINGS = [
    Ranking(example_id=f"r{n}", prompt_ids_T=ids(1), answer_ids_K=(ids(2), ids(3, n)))
    for n in range(4)
]
PROMPTS = [Prompt(prompt_id=f"p{n}", token_ids_T=(1, 2), text="p") for n in range(4)]


def data_of(kind: str) -> Any:
    tokenizer: Any = FakeTokenizer()
    on_rows = {"tokenizer": tokenizer, "eval_rows": []}
    match kind:
        case "sft":
            return SftData(rows=EXAMPLES, end_token_ids=(9,), **on_rows)
        case "rm":
            return RmData(rows=RANKINGS, reference_answers=RANKINGS[:3], **on_rows)
        case "dpo":
            return SupervisedData(rows=RANKINGS, **on_rows)
    return OnlineData(
        prompts=PROMPTS,
        eval_prompts=[],
        end_token_ids=(9,),
        vocabulary="v",
        tokenizer=tokenizer,
    )


def config_of(kind: str, run_dir: Path, **settings: Any) -> Any:
    cls = JOB_CONFIGS[kind]
    values: dict[str, Any] = {
        "run_dir": str(run_dir),
        "total_steps": 2,
        "data": {"path": "org/rows"},
        cls.trained_role: {"model": {"path": "org/start"}},
    }
    if "reward" not in values:
        values |= (
            {"reward": {"functions": [{"path": "m:f"}]}} if "reward" in cls.model_fields else {}
        )
    return cls.model_validate({**values, **settings})


def prepared(kind: str, run_dir: Path, pool: FakePool, **settings: Any) -> PreparedJob[Any, Any]:
    job = replace(
        JOBS[kind], load=lambda config: data_of(kind), loop=lambda *arguments: FakeLoop(pool.asked)
    )
    return job.prepare(config_of(kind, run_dir, **settings))


ONLINE_START = ["start", "load rollout", "rollout sleep 2", "load policy", "load reward"]
ONLINE_END = ["connect", "load experience", "loop"]
WITH_KL = {"algorithm": {"kl": {"coefficient": 0.1}}}
ADAPTED = {"policy": {"model": {"path": "org/start", "lora": {"rank": 4}}}}
CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "sft": ("sft", {}, ["start", "load policy", "loop", "finish"]),
    "rm": ("rm", {}, ["start", "load reward", "loop", "finish", "reward score_answers 3"]),
    "dpo": ("dpo", {}, ["start", "load reference", "load policy", "loop", "finish"]),
    "dpo whose reference scores ahead": (
        "dpo",
        {"reference_kind": "precomputed"},
        [
            *("start", "load reference", "reference answer_logps 4", "unload reference"),
            *("load policy", "loop", "finish"),
        ],
    ),
    "dpo without a reference": (
        "dpo",
        {"loss_type": ["simpo"]},
        ["start", "load policy", "loop", "finish"],
    ),
    "ppo": (
        "ppo",
        {},
        [*ONLINE_START, "load reference", "load value", *ONLINE_END, "finish"],
    ),
    "grpo": ("grpo", {}, [*ONLINE_START, *ONLINE_END, "finish"]),
    "grpo with a KL": ("grpo", WITH_KL, [*ONLINE_START, "load reference", *ONLINE_END, "finish"]),
    "grpo with a KL to the policy's own base": (
        "grpo",
        {**WITH_KL, **ADAPTED},
        [*ONLINE_START, *ONLINE_END, "finish"],
    ),
    "dpo whose policy has its reference below": (
        "dpo",
        ADAPTED,
        ["start", "load policy", "loop", "finish"],
    ),
    "sample": ("sample", {}, [*ONLINE_START, *ONLINE_END]),
}


@pytest.mark.parametrize("case", CASES)
async def test_what_a_job_asks_of_its_pool(case: str, tmp_path: Path) -> None:
    kind, settings, calls = CASES[case]
    pool = FakePool(tmp_path)
    await prepared(kind, tmp_path, pool, **settings).run(pool)
    assert pool.calls == calls
    assert (tmp_path / "tokenizer").is_dir()


STEPS = [(case, step) for case, (_, _, calls) in CASES.items() for step in calls]
SIDE_BY_SIDE = {"load policy", "load reward", "load reference", "load value"}


@pytest.mark.parametrize(("case", "step"), STEPS, ids=[f"{case}: {step}" for case, step in STEPS])
async def test_a_failure_surfaces_and_nothing_follows_it(
    case: str, step: str, tmp_path: Path
) -> None:
    kind, settings, calls = CASES[case]
    error = RunError(f"no {step}")
    pool = FakePool(tmp_path, fails_at=step, error=error)
    with pytest.raises(RunError) as caught:
        await prepared(kind, tmp_path, pool, **settings).run(pool)
    assert caught.value is error
    before = calls[: calls.index(step) + 1]
    assert pool.calls[: len(before)] == before
    after = pool.calls[len(before) :]
    assert not after or (step in SIDE_BY_SIDE and set(after) <= SIDE_BY_SIDE)


async def test_a_loop_goes_on_from_the_checkpoint_that_was_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = config_of("sft", tmp_path)
    store = CheckpointStore(tmp_path, keep=1)
    with store.writing(1) as folder:
        (folder / "policy").mkdir()
        (folder / "policy/weights").write_text("w")
        store.commit(1, {"setup": setup_of(config, EXAMPLES)}, roles=["policy"])
    pool = FakePool(tmp_path)
    await prepared("sft", tmp_path, pool, resume="auto").run(pool)
    assert "loop from 1" in pool.calls
    assert f"resumed after step 1, from {tmp_path}/checkpoints/step_00000001" in caplog.messages


async def test_samples_that_are_gone_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    config = config_of("sample", tmp_path)
    store = CheckpointStore(tmp_path, keep=1)
    with store.writing(1):
        state = {"setup": setup_of(config, PROMPTS), "sizes": {"samples.jsonl": 9}}
        store.commit(1, state, roles=[])
    with pytest.raises(ConfigError, match=r"samples\.jsonl"):
        prepared("sample", tmp_path, FakePool(tmp_path), resume="auto")


async def test_the_reference_answers_leave_their_mean_and_spread(tmp_path: Path) -> None:
    pool = FakePool(tmp_path)
    await prepared("rm", tmp_path, pool).run(pool)
    [file] = (tmp_path / "export").glob("*.json")
    written = json.loads(file.read_text())
    assert written["mean"] == pytest.approx(1.0)
    assert written["std"] == pytest.approx(np.std([0.0, 1.0, 2.0]))


async def test_what_the_reference_said_ahead_is_not_asked_again(tmp_path: Path) -> None:
    for calls in (1, 0):
        pool = FakePool(tmp_path)
        await prepared("dpo", tmp_path, pool, reference_kind="precomputed").run(pool)
        assert pool.calls.count("reference answer_logps 4") == calls


# ---------------------------------------------------------------------------- specifications


def specs_of(kind: str, **settings: Any) -> Any:
    return JOBS[kind].specs(config_of(kind, Path("run"), **settings), data_of(kind))


def test_every_role_of_a_job_has_a_specification() -> None:
    assert set(JOBS) == set(JOB_CONFIGS)
    for kind, job in JOBS.items():
        assert job.config is JOB_CONFIGS[kind]
        config = config_of(kind, Path("run"))
        groups = {role.removesuffix("_worker") for role in config.groups}
        assert job.specs(config, data_of(kind)).keys() == groups, kind
        assert config.trained_role in config.groups


def test_ppo() -> None:
    specs = specs_of("ppo", seed=3, rollout={"temperature": 0.7, "max_new_tokens": 5})
    policy, value, reference = specs["policy"], specs["value"], specs["reference"]
    assert isinstance(policy, PolicySpec)
    assert (policy.temperature, policy.max_new_tokens, policy.seed) == (0.7, 5, 3)
    assert policy.total_steps == 2 * 4, "four minibatches a step"
    assert policy.replay_folder == "run/skipped/policy"
    assert isinstance(value, ValueSpec)
    assert (model_path_of(value), value.replay_folder) == ("org/start", "run/skipped/value")
    assert isinstance(reference, ReferenceSpec)
    assert (model_path_of(reference), reference.temperature) == ("org/start", 0.7)
    assert isinstance(specs["rollout"], RolloutSpec)
    assert specs["rollout"].end_token_ids == specs["reward"].end_token_ids == (9,)
    assert isinstance(specs["reward"], RewardSpec)
    assert (specs["reward"].vocabulary, model_path_of(specs["reward"])) == ("v", "")


async def test_experience_is_built_with_the_weights_of_the_loaded_rewards(tmp_path: Path) -> None:
    pool = FakePool(tmp_path)
    await prepared("grpo", tmp_path, pool).run(pool)
    experience = pool.specs["experience"]
    assert isinstance(experience, ExperienceSpec)
    assert experience.reward_weights == {"score": 1.0}
    assert pool.probed == PROMPTS


def test_a_critic_and_a_reference_of_their_own() -> None:
    own = {"value": {"model": {"path": "org/c"}}, "reference": {"model": {"path": "org/r"}}}
    specs = specs_of("ppo", **own)
    assert (model_path_of(specs["value"]), model_path_of(specs["reference"])) == ("org/c", "org/r")


def test_rows() -> None:
    for kind, role in (("sft", "policy"), ("rm", "reward")):
        [(name, spec)] = specs_of(kind).items()
        assert name == role
        assert isinstance(spec, SupervisedSpec)
        assert (spec.total_steps, model_path_of(spec)) == (2, "org/start")
        assert spec.replay_folder == "run/skipped"


def test_dpos_reference_is_held_as_the_policy_is_unless_it_says_otherwise() -> None:
    policy = {"policy": {"model": {"path": "org/start", "dtype": "bfloat16"}}}
    spec = specs_of("dpo", **policy)["reference"]
    assert (model_path_of(spec), spec.temperature) == ("org/start", 1.0)
    assert spec.reference.model.dtype == "bfloat16"
    own = {**policy, "reference": {"model": {"dtype": "float32"}}}
    assert specs_of("dpo", **own)["reference"].reference.model.dtype == "float32"
    other = {**policy, "reference": {"model": {"path": "org/r"}}}
    assert (
        specs_of("dpo", **other)["reference"].reference.model
        == ReferenceConfig.model_validate(other["reference"]).model
    )
