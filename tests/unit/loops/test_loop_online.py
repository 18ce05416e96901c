"""The loop behind fake roles: what it calls and in which order, what it saves, when it stops."""

from __future__ import annotations

import asyncio
import json

import pytest
from fakes import (
    Company,
    CountedUsage,
    Recorder,
    batch_of,
    make_config,
    make_prompts,
    make_rollout,
)

from rlhf_ray.errors import RunError
from rlhf_ray.loops.checkpoints import CheckpointStore
from rlhf_ray.loops.clock import StepClock
from rlhf_ray.loops.collection import Collected
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.loops.report import rollout_metrics
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.types import Score

KEEP_ALL = {"every": 1, "keep": 10}


def spread(prompt_id, sample):
    return float(sample)


def loop_of(config, company, *, held_out=0, value=True, recorder=None, **keywords):
    evaluation = Evaluation(config, make_prompts(held_out))
    return OnlineLoop(
        config,
        company.roles(value=value),
        make_prompts(10),
        evaluation,
        MetricsLog([recorder or Recorder()]),
        num_policy_ranks=2,
        num_value_ranks=1,
        **keywords,
    )


async def test_a_step_is_told_as_the_design_tells_it(tmp_path):
    config = make_config(tmp_path, total_steps=1)
    company = Company(config, spread)
    await loop_of(config, company).run(None)
    calls = company.calls
    assert calls[:4] == [
        "rollout.wake_up", "policy.publish@0", "rollout.generate@0", "rollout.sleep"
    ]  # fmt: skip
    scored = calls[4:8]
    assert set(scored) == {
        "policy.logprobs", "reference.logprobs", "value.values", "reward.score"
    }  # fmt: skip
    assert calls[8] == "assembler.build"
    assert set(calls[9:11]) == {"policy.update", "value.update"}
    assert calls[11:] == ["rollout.wake_up", "policy.publish@1", "policy.save", "value.save"]


async def test_a_step_says_where_its_time_and_its_processes_went(tmp_path):
    config, recorder = make_config(tmp_path), Recorder()
    company = Company(config, spread)
    await loop_of(config, company, recorder=recorder, usage=CountedUsage()).run(None)
    for step in (1, 2, 3):
        told = recorder.steps[step]
        shares = {name: value for name, value in told.items() if name.startswith("share/")}
        assert {name.partition("/")[2] for name in shares} == {
            "generate", "score", "update", "publish"
        }  # fmt: skip
        assert sum(shares.values()) <= 1.0
        assert told["share/score"] == pytest.approx(told["time/score"] / told["time/step"])
        assert told["perf/samples_per_s"] == pytest.approx(8 / told["time/step"])
        assert told["perf/score_tokens_per_s"] > told["perf/tokens_per_s"]
        assert told["perf/bubble_share"] == pytest.approx((step + 1) / told["time/step"])
        # The first report, of how long roles waited until all of them were there, is no step's.
        assert told["wait/policy"] == step + 1
    assert "wait/policy" not in recorder.steps[0]


async def test_a_step_lasts_from_log_to_log(tmp_path):
    """With the checkpoint before it and its own evaluation."""
    config = make_config(
        tmp_path, total_steps=2, checkpoint=KEEP_ALL, eval={"every": 1, "data": {"path": "x"}}
    )
    company, recorder = Company(config, spread), Recorder()
    save = company.save

    async def slow_save(folder):
        await asyncio.sleep(0.1)
        await save(folder)

    company.save = slow_save
    await loop_of(config, company, held_out=1, recorder=recorder).run(None)
    assert "time/checkpoint" not in recorder.steps[1]
    told = recorder.steps[2]
    assert told["time/step"] >= told["time/checkpoint"] + told["time/evaluate"] > 0.1


async def test_rollout_metrics_speak_of_all_that_was_sampled(tmp_path):
    dynamic = {"dynamic_sampling": {"enabled": True, "max_rounds": 2}}
    config = make_config(
        tmp_path, total_steps=1, data={"path": "x", "shuffle": False}, algorithm=dynamic
    )
    # p1 and p3 score alike, and so does p4 of the two that come in their place.
    company, recorder = (
        Company(config, lambda p, s: 5.0 if p in ("p1", "p3", "p4") else s),
        Recorder(),
    )
    await loop_of(config, company, recorder=recorder).run(None)
    told = recorder.steps[1]
    assert company.num_built == 6
    assert told["rollout/zero_spread_share"] == 0.5
    assert told["rollout/reward_mean"] == (6 * 5.0 + 3 * 1.0) / 12
    assert (told["rollout/trained_groups"], told["rollout/refilled_groups"]) == (3, 2)
    assert told["perf/samples_per_s"] == pytest.approx(12 / told["time/step"])


SCORES = [Score(total=0.0), Score(total=1.0)]


async def test_staleness_is_counted_over_tokens():
    fresh, stale = make_rollout(make_prompts(1)[0], 0, 6, 4), make_rollout(make_prompts(1)[0], 1, 2)
    stale.versions_T[:] = (0, 4)  # sampled across a publication
    collected = Collected(
        sampled=batch_of([fresh, stale]),
        scores=asyncio.get_running_loop().create_future(),
        kept=(0, 1),
        num_groups=1,
        num_refilled=0,
    )
    clock = StepClock()
    clock.seconds = dict.fromkeys(("generate", "score", "update"), 1.0)
    told = rollout_metrics(collected, SCORES, {}, clock, version=4)
    assert (told["async/staleness_mean"], told["async/staleness_max"]) == (4 / 8, 4)
    assert "perf/bubble_share" not in told, "nobody measured it"


async def test_every_step_samples_from_the_weights_of_the_one_before(tmp_path):
    config = make_config(tmp_path)
    company, recorder = Company(config, spread), Recorder()
    await loop_of(config, company, recorder=recorder).run(None)
    versions = [call for call in company.calls if "@" in call]
    assert versions == [
        "policy.publish@0",
        *(f"{call}@{n + i}" for n in range(3) for i, call in enumerate(GENERATE_THEN_PUBLISH)),
    ]
    assert [recorder.steps[step]["async/staleness_max"] for step in (1, 2, 3)] == [0, 0, 0]


GENERATE_THEN_PUBLISH = ("rollout.generate", "policy.publish")


async def test_a_job_without_a_critic_asks_none(tmp_path):
    config = make_config(tmp_path, algorithm={"advantage": "grpo"})
    company = Company(config, spread)
    await loop_of(config, company, value=False).run(None)
    assert not [call for call in company.calls if call.startswith("value.")]


async def test_held_out_prompts_are_scored_before_every_few_and_after(tmp_path):
    config = make_config(
        tmp_path, total_steps=5, eval={"every": 2, "data": {"path": "x"}, "table_rows": 2}
    )
    company, recorder = Company(config, spread), Recorder()
    await loop_of(config, company, held_out=3, recorder=recorder).run(None)
    evaluated = [step for step, m in recorder.steps.items() if "eval/reward_mean" in m]
    assert evaluated == [0, 2, 4, 5]
    assert [table.step for table in recorder.tables] == [0, 2, 4, 5]
    assert len(recorder.tables[0].rows) == 2
    # The same seeds each time, so that evaluations compare.
    asked = [r for r in company.requests if r.temperature == 0]
    assert len({r.seeds_G for r in asked if r.prompt.prompt_id == "p0"}) == 1


async def test_a_resumed_loop_goes_on_as_if_nothing_had_been(tmp_path):
    adaptive = {"kl": {"coefficient": 0.1, "controller": "adaptive", "target": 0.01}}
    settings = {"total_steps": 5, "checkpoint": KEEP_ALL, "algorithm": adaptive}
    config = make_config(tmp_path / "whole", **settings)
    whole, recorded = Company(config, spread), Recorder()
    await loop_of(config, whole, recorder=recorded).run(None)

    config = make_config(tmp_path / "cut", **settings)
    cut = Company(config, lambda prompt_id, sample: fail_at_step_4(cut, sample))
    with pytest.raises(OSError, match="power cut"):
        await loop_of(config, cut).run(None)
    checkpoint = CheckpointStore(tmp_path / "cut", keep=10).latest()
    assert checkpoint.step == 3

    resumed, again = Company(config, spread), Recorder()
    await loop_of(config, resumed, recorder=again).run(checkpoint)
    assert resumed.calls[:4] == [
        "policy.restore", "value.restore", "rollout.wake_up", "policy.publish@3"
    ]  # fmt: skip
    assert list(again.steps) == [4, 5]
    assert resumed.requests == whole.requests[-8:]
    assert resumed.num_updates == whole.num_updates == 5
    for step in (4, 5):
        # The fake reports the coefficient that it was given as its rate.
        assert again.steps[step]["policy/lr"] == recorded.steps[step]["policy/lr"]
    assert recorded.steps[5]["policy/lr"] != recorded.steps[1]["policy/lr"]


def fail_at_step_4(company, sample):
    if company.version == 3:
        raise OSError("power cut")
    return float(sample)


async def test_a_state_is_plain_json(tmp_path):
    config = make_config(tmp_path, checkpoint=KEEP_ALL)
    await loop_of(config, Company(config, spread)).run(None)
    manifest = json.loads((tmp_path / "checkpoints/step_00000002/manifest.json").read_text())
    assert manifest["state"]["order"]["position"] == 8
    assert set(manifest["files"]) == {"policy/weights", "value/weights"}


async def test_steps_that_are_not_finite_stop_the_run_when_they_come_in_a_row(tmp_path):
    config = make_config(tmp_path, total_steps=9, nonfinite_steps_to_stop=3)
    company, recorder = Company(config, spread, skipped=[1, 2, 0, 1, 0, 4]), Recorder()
    with pytest.raises(RunError, match=r"step 6: .* not finite in 4 optimiser steps in a row .pol"):
        await loop_of(config, company, recorder=recorder).run(None)
    assert company.num_updates == 6
    assert recorder.steps[6]["policy/skipped_in_a_row"] == 4, "the last step is logged as well"


async def test_policy_and_critic_are_counted_apart(tmp_path):
    config = make_config(tmp_path, nonfinite_steps_to_stop=2)
    company = Company(config, spread, skipped=[1, 1, 1])
    roles = company.roles()
    update = roles.value.update

    async def skipping(experience, plan):
        return {**await update(experience, plan), "skipped_in_a_row": 1.0}

    roles.value.update = skipping
    loop = loop_of(config, company)
    loop.roles = roles
    await loop.run(None)
    assert company.num_updates == 3
