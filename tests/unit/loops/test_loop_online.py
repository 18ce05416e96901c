"""The loop behind fake roles: what it calls and in which order, what it saves, when it stops."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest
from fake_companies import CutCompany, ReadableCompany
from fake_sink import FakeSink
from fakes import (
    COSTS,
    Company,
    CountedUsage,
    groups_of,
    make_config,
    make_prompts,
    make_rollout,
)

from rlhf_ray.errors import RunError
from rlhf_ray.loops.checkpoints import CheckpointStore
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.loops.report import publication_metrics, rollout_metrics, sample_metrics
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.metrics.clock import StepClock
from rlhf_ray.roles.groups import ScoredGroup
from rlhf_ray.roles.reports import Hardware, Publication
from rlhf_ray.types import RolloutSummary, Score

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
        MetricsLog([recorder or FakeSink()]),
        **keywords,
    )


async def test_a_step_is_told_as_the_design_tells_it(tmp_path):
    config = make_config(tmp_path, total_steps=1, placement={"policy": {"ranks": 2}})
    company = Company(config, spread)
    await loop_of(config, company).run(None)
    calls = company.calls

    def publication(version):
        return [
            "rollout.wake_up(weights)", f"policy.publish@{version}",
            "rollout.wake_up(kv_cache)", "policy.compare",
        ]  # fmt: skip

    # Groups are scored as they finish, beside whatever comes next.
    last = calls.index("experience.build")
    assert calls[:last].count("reward.score") == calls.count("reward.score") == 4
    calls = [call for call in calls if call != "reward.score"]
    assert calls[:6] == [*publication(0), "rollout.generate@0", "rollout.sleep@2"]
    assert set(calls[6:9]) == {"policy.logprobs", "reference.logprobs", "value.values"}
    assert calls[9] == "experience.build"
    assert set(calls[10:12]) == {"policy.update", "value.update"}
    assert calls[12:] == [
        *publication(1), "rollout.sleep@2", "policy.save", "value.save", "rollout.sleep@2"
    ]  # fmt: skip


async def test_a_step_says_where_its_time_and_its_processes_went(tmp_path):
    config, recorder = make_config(tmp_path), FakeSink()
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


@pytest.mark.parametrize("shares_prompts", [True, False], ids=["shared", "plain"])
async def test_utilisation_counts_every_epoch_and_no_prompt_as_scored(tmp_path, shares_prompts):
    config, recorder = make_config(tmp_path, algorithm={"epochs": 2}), FakeSink()
    company = Company(config, spread)

    async def hardware():
        return Hardware(
            flops=COSTS,
            device_name="NVIDIA H100 80GB",
            num_devices=2,
            shares_prompts=shares_prompts,
        )

    company.hardware = hardware
    await loop_of(config, company, recorder=recorder).run(None)
    told = recorder.steps[3]
    summaries = [
        RolloutSummary.of(r) for request in company.requests[8:] for r in company.sampled(request)
    ]
    num_flops = COSTS.of(
        [s.num_prompt_tokens + s.num_response_tokens for s in summaries],
        num_scored=sum(s.num_response_tokens for s in summaries),
    )
    if shares_prompts:
        num_flops -= COSTS.of([s.num_prompt_tokens for s in summaries if s.sample], num_scored=0)
    assert told["perf/mfu"] == pytest.approx(2 * num_flops / (told["time/update"] * 2 * 989e12))


async def test_a_step_lasts_from_log_to_log(tmp_path):
    """With the checkpoint before it and its own evaluation."""
    config = make_config(
        tmp_path, total_steps=2, checkpoint=KEEP_ALL, eval={"every": 1, "data": {"path": "x"}}
    )
    company, recorder = Company(config, spread), FakeSink()
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
        FakeSink(),
    )
    await loop_of(config, company, recorder=recorder).run(None)
    told = recorder.steps[1]
    assert company.num_built == 6
    assert told["rollout/zero_spread_share"] == 0.5
    assert told["rollout/reward_mean"] == (6 * 5.0 + 3 * 1.0) / 12
    assert (told["rollout/trained_groups"], told["rollout/refilled_groups"]) == (3, 2)
    assert told["perf/samples_per_s"] == pytest.approx(12 / told["time/step"])


SCORES = (Score(total=0.0), Score(total=1.0))


def test_staleness_is_counted_over_tokens():
    fresh, stale = make_rollout(make_prompts(1)[0], 0, 6, 4), make_rollout(make_prompts(1)[0], 1, 2)
    stale.versions_T[:] = (0, 4)  # sampled across a publication
    groups = groups_of([fresh, stale])
    scored = [ScoredGroup(group=group, scores_G=SCORES) for group in groups]
    clock = StepClock()
    clock.seconds = dict.fromkeys(("generate", "score", "update"), 1.0)
    told = rollout_metrics(
        scored, groups, {}, clock, num_kept=1, num_refilled=0, version=4, apart=False
    )
    assert (told["async/staleness_mean"], told["async/staleness_max"]) == (4 / 8, 4)
    assert "perf/bubble_share" not in told, "nobody measured it"


async def test_every_step_samples_from_the_weights_of_the_one_before(tmp_path):
    config = make_config(tmp_path)
    company, recorder = Company(config, spread), FakeSink()
    await loop_of(config, company, recorder=recorder).run(None)
    versions = [call for call in company.calls if "@" in call and "sleep" not in call]
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
    company, recorder = Company(config, spread), FakeSink()
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
    whole, recorded = Company(config, spread), FakeSink()
    await loop_of(config, whole, recorder=recorded).run(None)

    config = make_config(tmp_path / "cut", **settings)
    cut = Company(config, lambda prompt_id, sample: fail_at_step_4(cut, sample))
    with pytest.raises(OSError, match="power cut"):
        await loop_of(config, cut).run(None)
    checkpoint = CheckpointStore(tmp_path / "cut", keep=10).latest()
    assert checkpoint.step == 3

    resumed, again = Company(config, spread), FakeSink()
    await loop_of(config, resumed, recorder=again).run(checkpoint)
    assert resumed.calls[:4] == [
        "policy.restore", "value.restore", "rollout.wake_up(weights)", "policy.publish@3"
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
    company, recorder = Company(config, spread, skipped=[1, 2, 0, 1, 0, 4]), FakeSink()
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


UNSCORED = {("p0", 0), ("p1", 0), ("p1", 1), ("p2", 1)}


def sometimes(prompt_id, sample):
    return None if (prompt_id, sample) in UNSCORED else float(sample)


@pytest.mark.parametrize(
    ("advantage", "left", "groups"),
    [
        # Of a group that is compared with itself two must be left.
        ("grpo", [("p3", 0), ("p3", 1)], (1, 3)),
        ("gae", [("p0", 1), ("p2", 0), ("p3", 0), ("p3", 1)], (3, 1)),
    ],
)
async def test_rows_that_no_reward_applies_to_leave_their_group(tmp_path, advantage, left, groups):
    config = make_config(
        tmp_path,
        total_steps=1,
        data={"path": "x", "shuffle": False},
        algorithm={"advantage": advantage, "minibatches": 4},
    )
    company, recorder = ReadableCompany(config, sometimes), FakeSink()
    await loop_of(config, company, value=advantage == "gae", recorder=recorder).run(None)
    told = recorder.steps[1]
    assert company.built == left
    assert company.num_updates == 1
    assert told["rollout/unscored"] == 4
    assert (told["rollout/trained_groups"], told["rollout/left_out_groups"]) == groups
    # p0, p2 and p3 have scores: 1; 0; 0 and 1.
    assert told["rollout/reward_mean"] == 0.5
    assert told["rollout/zero_spread_share"] == pytest.approx(2 / 3)
    assert told["rollout/empty_steps_in_a_row"] == 0


def none_in_steps(company, *steps):
    return lambda prompt_id, sample: None if company.version + 1 in steps else float(sample)


@pytest.mark.parametrize("dynamic", [False, True])
async def test_a_step_that_nothing_is_left_of_is_passed_over_and_counted(tmp_path, dynamic, caplog):
    adaptive = {"coefficient": 0.1, "controller": "adaptive", "target": 0.01}
    config = make_config(
        tmp_path,
        total_steps=4,
        algorithm={"kl": adaptive, "dynamic_sampling": {"enabled": dynamic, "max_rounds": 2}},
        eval={"every": 1, "data": {"path": "x"}},
    )
    company, recorder = Company(config, spread), FakeSink()
    company.scoring = none_in_steps(company, 2, 3)
    await loop_of(config, company, held_out=2, recorder=recorder).run(None)
    assert company.num_updates == 2
    # Where scores are known before the passes of the models, there is nothing to pass.
    assert company.calls.count("policy.logprobs") == (2 if dynamic else 4)
    assert [recorder.steps[n]["rollout/empty_steps_in_a_row"] for n in (1, 2, 3, 4)] == [0, 1, 2, 0]
    told = recorder.steps[2]
    assert told["rollout/trained_groups"] == 0
    assert told["rollout/unscored"] == 8 * (1 + dynamic)
    assert "rollout/reward_mean" not in told
    assert "policy/loss" not in told
    assert told["perf/update_tokens_per_s"] == 0
    # The controller hears of steps 1 and 4 alone; the fake's rate is the coefficient.
    coefficients = [recorder.steps[n]["policy/kl_coefficient"] for n in (1, 2, 3, 4)]
    assert coefficients[0] < coefficients[1] == coefficients[2] == coefficients[3]
    # Its evaluation, with the weights of step 1 still, has no scores either.
    assert recorder.steps[1]["eval/unscored"] == 2
    assert "eval/reward_mean" not in recorder.steps[1]
    assert [call for call in company.calls if "publish" in call][-1] == "policy.publish@4"
    assert "step 3 trains nothing" in caplog.text


async def test_too_many_steps_in_a_row_with_nothing_to_train_stop_the_run(tmp_path):
    config = make_config(tmp_path, total_steps=9, empty_steps_to_stop=3, checkpoint=KEEP_ALL)
    company = Company(config, spread)
    company.scoring = none_in_steps(company, 1, 3, 4, 5, 6)
    with pytest.raises(RunError, match=r"step 5: nothing was left to train in 3 steps in a row"):
        await loop_of(config, company).run(None)
    # The count is in the checkpoint: a run that goes on from step 4 does not begin to count anew.
    company = Company(config, spread)
    company.scoring = none_in_steps(company, 5)
    with pytest.raises(RunError, match=r"step 5: nothing was left to train in 3 steps in a row"):
        await loop_of(config, company).run(CheckpointStore(tmp_path, keep=10).latest())


async def test_while_the_critic_warms_up_the_policy_stays_as_it_is(tmp_path):
    adaptive = {"coefficient": 0.1, "controller": "adaptive", "target": 0.01}
    config = make_config(
        tmp_path,
        total_steps=4,
        value={"warmup_steps": 2},
        algorithm={"kl": adaptive},
        checkpoint=KEEP_ALL,
    )
    company, recorder = Company(config, spread), FakeSink()
    await loop_of(config, company, recorder=recorder).run(None)
    assert company.calls.count("value.update") == 4
    assert company.num_updates == 2
    trained = [recorder.steps[n].keys() & {"policy/loss", "value/loss"} for n in (1, 2, 3, 4)]
    assert trained == [{"value/loss"}] * 2 + [{"policy/loss", "value/loss"}] * 2
    coefficients = [recorder.steps[n]["policy/kl_coefficient"] for n in (1, 2, 3, 4)]
    assert coefficients[0] == coefficients[1] == coefficients[2] == 0.1 < coefficients[3]
    assert [recorder.steps[n]["async/staleness_max"] for n in (1, 2, 3, 4)] == [0, 0, 0, 0]

    store = CheckpointStore(tmp_path, keep=10)
    for later in (2, 3, 4):
        shutil.rmtree(store.root / f"step_{later:08d}")
    resumed, again = Company(config, spread), FakeSink()
    await loop_of(config, resumed, recorder=again).run(store.latest())
    assert resumed.requests == company.requests[4:]
    assert (resumed.calls.count("value.update"), resumed.num_updates) == (3, 2)
    for step in (2, 3, 4):
        for name in ("policy/kl_coefficient", "rollout/reward_mean"):
            assert again.steps[step][name] == recorder.steps[step][name]


@pytest.mark.parametrize("truncated", ["train", "mask", "bootstrap"])
async def test_a_masked_response_is_in_no_denominator(tmp_path, truncated):
    config = make_config(
        tmp_path, total_steps=1, algorithm={"minibatches": 1, "truncated": truncated}
    )
    company = CutCompany(config, spread)
    await loop_of(config, company).run(None)
    [minibatch] = company.plans[0].minibatches
    counted = company.lens[::2] if truncated == "mask" else company.lens
    assert minibatch.num_tokens == sum(counted)
    assert minibatch.num_sequences == len(counted)


@pytest.mark.parametrize("truncated", ["train", "mask"])
async def test_a_step_of_masked_responses_alone_moves_no_weights(tmp_path, truncated, caplog):
    """An optimiser step with a gradient of 0 would, by momentum and weight decay."""
    config = make_config(
        tmp_path, total_steps=3, empty_steps_to_stop=2, algorithm={"truncated": truncated}
    )
    company, recorder = CutCompany(config, spread, all_in_steps=(2,)), FakeSink()
    await loop_of(config, company, recorder=recorder).run(None)
    masks = truncated == "mask"
    assert company.num_updates == company.calls.count("value.update") == 3 - masks
    told = recorder.steps[2]
    assert told["rollout/empty_steps_in_a_row"] == masks
    assert told["rollout/trained_groups"] == (0 if masks else 4)
    assert ("step 2 trains nothing" in caplog.text) == masks
    if masks:
        company = CutCompany(config, spread, all_in_steps=(1, 2, 3))
        with pytest.raises(RunError, match=r"step 2: nothing was left to train in 2 .* were cut"):
            await loop_of(config, company).run(None)


def test_rewards_that_are_told_apart_spread_apart():
    """Two that add up to the same total teach all the same, and are no groups without spread."""
    groups = groups_of(
        [make_rollout(p, sample, draw=draw) for draw, p in enumerate(make_prompts(2))
         for sample in (0, 1)]
    )  # fmt: skip
    parts = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 0.0}]
    scores = [Score(total=1.0, parts=part) for part in parts]
    sampled = [
        ScoredGroup(group=group, scores_G=tuple(scores[2 * n : 2 * n + 2]))
        for n, group in enumerate(groups)
    ]
    clock = StepClock()
    with clock.phase("generate"):
        pass
    told = [sample_metrics(sampled, clock, apart=apart) for apart in (False, True)]
    assert [metrics["rollout/zero_spread_share"] for metrics in told] == [1.0, 0.5]


def test_the_gap_is_the_probes_alone_where_older_weights_sampled():
    published = Publication(
        version=3, seconds=1.0, num_bytes=1,
        logprob_abs_max=1e-5, logprob_abs_p99=1e-6, logprob_abs_mean=1e-7,
    )  # fmt: skip
    of_rollouts = {"mismatch/logprob_abs_max": 2.0}
    gaps = [
        publication_metrics(published, of_rollouts, runs_ahead=ahead)["mismatch/logprob_abs_max"]
        for ahead in (False, True)
    ]
    assert gaps == [2.0, 1e-5]
