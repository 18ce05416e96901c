"""Prompts are drawn in order, and dynamic sampling replaces exactly the groups without spread."""

from __future__ import annotations

import asyncio
import math
import random
from collections import defaultdict

import pytest
from fakes import Company, make_config, make_prompts, resolve

from rlhf_ray.data.order import RowsInOrder
from rlhf_ray.errors import FAILURE_CAUSES, GroupFailed, RunError
from rlhf_ray.metrics.clock import StepClock
from rlhf_ray.rollouts.feed import Feed
from rlhf_ray.rollouts.groups import trainable
from rlhf_ray.types import Score

DYNAMIC = {"dynamic_sampling": {"enabled": True, "max_rounds": 3}}


SHARED = {"share": "policy", "gpus_per_rank": 1}
ON_ONE_GPU = {"policy": {"gpus_per_rank": 1}, "rollout": SHARED, "reward": SHARED}


def feed_on(
    tmp_path, scoring, *, num_prompts=10, settings=None, publishes=True, steps=0, **algorithm
):
    config = make_config(
        tmp_path,
        data={"path": "x", "shuffle": False},
        algorithm=algorithm,
        **{"total_steps": 100, **(settings or {})},
    )
    company = Company(config, scoring)
    order = RowsInOrder(make_prompts(num_prompts), seed=0, shuffle=False)
    feed = Feed(config, order, engine=company, reward=company, publishes=publishes, steps=steps)
    return feed, company, order


def by_sample(prompt_id, sample):
    return float(sample)


async def totals_of(feed, collected):
    return [score.total for scored in await feed.scores(collected) for score in scored.scores_G]


async def test_each_step_takes_the_next_prompts(tmp_path):
    feed, company, order = feed_on(tmp_path, by_sample)
    collected = await feed.take(1, StepClock())
    assert collected.groups == collected.sampled
    assert [group.draw for group in collected.groups] == [0, 1, 2, 3]
    assert [(r.prompt.prompt_id, r.sample) for r in resolve(collected.groups)] == [
        (f"p{n}", sample) for n in range(4) for sample in (0, 1)
    ]
    assert await totals_of(feed, collected) == [0.0, 1.0] * 4
    assert collected.num_refilled == 0
    await feed.take(2, StepClock())
    assert [r.prompt.prompt_id for r in company.requests[4:]] == ["p4", "p5", "p6", "p7"]
    assert order.position == 8


async def test_a_prompt_that_comes_again_is_sampled_anew(tmp_path):
    feed, company, _ = feed_on(tmp_path, lambda prompt_id, sample: 0.0)
    for step in range(1, 6):
        await feed.scores(await feed.take(step, StepClock()))
    seeds = [seed for request in company.requests for seed in request.seeds_G]
    assert [r.prompt.prompt_id for r in company.requests].count("p0") == 2
    assert len(set(seeds)) == len(seeds) == 40


# Weights are dropped only where a publication comes before the next rollout, in any case.
@pytest.mark.parametrize(
    ("algorithm", "publishes", "level"), [({}, True, 2), ({}, False, 1), (DYNAMIC, True, 1)]
)
async def test_engines_leave_a_shared_gpu_to_the_reward_model(
    tmp_path, algorithm, publishes, level
):
    model = {"reward": {"model": {"path": "rm"}}, "placement": ON_ONE_GPU}
    feed, company, _ = feed_on(
        tmp_path, by_sample, settings=model, publishes=publishes, **algorithm
    )
    await feed.scores(await feed.take(1, StepClock()))
    scores = ["reward.score"] * 4
    assert company.calls == ["rollout.generate@-1", f"rollout.sleep@{level}", *scores]
    apart = {**model, "placement": {**ON_ONE_GPU, "reward": {"gpus_per_rank": 1}}}
    feed, company, _ = feed_on(tmp_path, by_sample, settings=apart, **algorithm)
    await feed.scores(await feed.take(1, StepClock()))
    assert company.calls == ["rollout.generate@-1", *scores]


async def test_groups_without_spread_are_replaced_one_for_one(tmp_path):
    # p1 and p3 have no spread; their replacements are p4 and p5, of which p5 has none either.
    flat = {"p1", "p3", "p5"}
    feed, company, order = feed_on(
        tmp_path, lambda prompt_id, sample: 0.0 if prompt_id in flat else float(sample), **DYNAMIC
    )
    collected = await feed.take(1, StepClock())
    rollouts = resolve(collected.groups)
    assert [r.prompt.prompt_id for r in rollouts[::2]] == ["p0", "p2", "p4", "p6"]
    assert [r.sample for r in rollouts] == [0, 1] * 4
    assert collected.num_refilled == 3
    # What was left out is still known, in the order of sampling.
    sampled = resolve(collected.sampled)
    assert [r.prompt.prompt_id for r in sampled[::2]] == [f"p{n}" for n in range(7)]
    assert await totals_of(feed, collected) == [
        0.0 if r.prompt.prompt_id in flat else float(r.sample) for r in sampled
    ]
    assert order.position == 7, "nothing is generated that is not needed"
    calls = "".join(call.partition(".")[2][0] for call in company.calls)
    assert calls == "gssss" + "gss" + "gs", "three rounds, each group scored by itself"


async def test_generation_and_scoring_are_timed_apart(tmp_path):
    feed, company, _ = feed_on(tmp_path, by_sample, **DYNAMIC)
    score = company.score

    async def slow_score(group):
        await asyncio.sleep(0.2)
        return await score(group)

    company.score, clock = slow_score, StepClock()
    await feed.take(1, clock)
    assert clock.seconds["score"] >= 0.2 > clock.seconds["generate"]


def bad_reward(company, *bad):
    """Fails at these prompts, always."""
    score = company.score

    async def scored(group):
        if group.prompt.prompt_id in bad:
            raise GroupFailed.of(f"{group.prompt.prompt_id} crashes it", cause="crashed")
        return await score(group)

    company.score = scored


def bad_environment(company, *bad):
    """Fails at these prompts, always."""
    generate = company.generate

    async def answered(answer):
        group = await answer
        if group.prompt.prompt_id in bad:
            raise GroupFailed.of(f"{group.prompt.prompt_id} crashes it", cause="crashed")
        return group

    async def generated(requests, *, together=True):
        return [answered(answer) for answer in await generate(requests, together=together)]

    company.generate = generated


SKIPS = {"failures": {"row": {"retries": 0}}}
BAD = pytest.mark.parametrize("bad", [bad_reward, bad_environment], ids=["reward", "environment"])


@BAD
async def test_a_group_without_scores_keeps_its_place_in_the_step(tmp_path, bad):
    feed, company, order = feed_on(tmp_path, by_sample, settings=SKIPS)
    bad(company, "p1")
    collected = await feed.take(1, StepClock())
    scored = await feed.scores(collected)
    assert [group.group.draw for group in scored if group.is_skipped] == [1]
    assert [len(group.scores_G) for group in trainable(scored, smallest_group=2)] == [2] * 3
    assert order.position == 4


@BAD
async def test_a_group_without_scores_is_replaced_where_groups_are_filtered(tmp_path, bad):
    feed, company, _ = feed_on(tmp_path, by_sample, settings=SKIPS, **DYNAMIC)
    bad(company, "p1", "p4")
    collected = await feed.take(1, StepClock())
    assert [group.draw for group in collected.groups] == [0, 2, 3, 5]
    scored = await feed.scores(collected)
    assert [group.group.draw for group in scored if group.is_skipped] == [1, 4]


@BAD
@pytest.mark.parametrize("algorithm", [{}, DYNAMIC], ids=["plain", "dynamic"])
async def test_too_many_groups_without_scores_end_the_run(tmp_path, algorithm, bad):
    feed, company, _ = feed_on(tmp_path, by_sample, settings=SKIPS, **algorithm)
    bad(company, "p0", "p2", "p3")
    with pytest.raises(RunError, match=r"crashes it; 3 of the last \d groups could not be sampled"):
        await feed.scores(await feed.take(1, StepClock()))


def only_p2(prompt_id, sample):
    return float(sample) if prompt_id == "p2" else 1.0


async def test_after_the_last_round_the_step_goes_on_with_what_there_is(tmp_path, caplog):
    feed, _, order = feed_on(tmp_path, only_p2, **DYNAMIC)
    collected = await feed.take(1, StepClock())
    assert {r.prompt.prompt_id for r in resolve(collected.groups)} == {"p2"}
    assert collected.num_refilled == 6
    assert order.position == 4 + 3 + 3
    assert "step 1 trains 1 of 4 groups: in 3 rounds" in caplog.text


async def test_a_step_that_lacks_groups_can_be_an_error(tmp_path):
    dynamic = {**DYNAMIC["dynamic_sampling"], "on_exhausted": "error"}
    feed, _, _ = feed_on(tmp_path, only_p2, steps=6, dynamic_sampling=dynamic)
    message = (
        r"step 7: 1 of 4 groups have scores that differ after 3 rounds \(9 filtered\); the "
        "prompts are too easy or too hard, or max_rounds is too low"
    )
    with pytest.raises(RunError, match=message):
        await feed.take(7, StepClock())


async def test_no_group_with_spread_at_all_leaves_a_step_without_groups(tmp_path, caplog):
    feed, _, order = feed_on(tmp_path, lambda prompt_id, sample: 1.0, steps=6, **DYNAMIC)
    collected = await feed.take(7, StepClock())
    assert collected.groups == []
    assert len(resolve(collected.sampled)) == len(await totals_of(feed, collected)) == 3 * 4 * 2
    assert order.position == 12
    assert "step 7 trains 0 of 4 groups" in caplog.text


async def test_a_prompt_that_is_drawn_again_in_a_step_is_judged_by_itself(tmp_path):
    """Three rounds of four draws from a data set of two prompts: p1 has spread, p0 never."""
    feed, company, _ = feed_on(
        tmp_path, lambda prompt_id, sample: sample * (prompt_id == "p1"), num_prompts=2, **DYNAMIC
    )
    collected = await feed.take(1, StepClock())
    # Draws 0 to 3, then 4 and 5 for 0 and 2, then 6 for 4.
    rollouts = resolve(collected.groups)
    assert [(r.draw, r.prompt.prompt_id) for r in rollouts[::2]] == [
        (1, "p1"), (3, "p1"), (5, "p1"),
    ]  # fmt: skip
    seeds = [seed for request in company.requests for seed in request.seeds_G]
    assert [request.draw for request in company.requests] == list(range(7))
    assert len(set(seeds)) == len(seeds) == 14


async def test_samples_without_a_score_leave_their_group_before_its_spread_is_looked_at(tmp_path):
    # Of p0 and p2 one sample alone has a score, of p1 none: no spread. Of p3 two of three differ.
    scores = {"p0": [1, None, None], "p1": [None] * 3, "p2": [None, None, 0], "p3": [2, None, 3]}
    feed, _, _ = feed_on(
        tmp_path,
        lambda prompt_id, sample: scores.get(prompt_id, [0, 1, 2])[sample],
        settings={"samples_per_prompt": 3},
        **DYNAMIC,
    )
    collected = await feed.take(1, StepClock())
    assert [(r.prompt.prompt_id, r.sample) for r in resolve(collected.groups)] == [
        ("p3", 0), ("p3", 2), *((f"p{n}", sample) for n in (4, 5, 6) for sample in range(3))
    ]  # fmt: skip
    assert collected.num_refilled == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
async def test_a_score_that_is_not_finite_decides_about_no_group(tmp_path, bad):
    feed, _, _ = feed_on(
        tmp_path, lambda prompt_id, sample: bad if prompt_id == "p3" else sample, **DYNAMIC
    )
    with pytest.raises(ValueError, match="scores of draw 3 must be finite"):
        await feed.take(1, StepClock())


@pytest.mark.parametrize(("advantage", "kept"), [("grpo", []), ("gdpo", ["p0"])])
async def test_groups_whose_rewards_tie_in_their_sum_are_kept_where_they_are_told_apart(
    tmp_path, advantage, kept
):
    """p0's two rewards add up to 1 in both samples; the other prompts' are all alike."""
    feed, company, _ = feed_on(
        tmp_path,
        lambda prompt_id, sample: 1.0,
        advantage=advantage,
        kl={"coefficient": 0},
        dynamic_sampling={"enabled": True, "max_rounds": 1},
    )

    def parts(prompt_id, sample):
        a = float(prompt_id == "p0" and sample == 1)
        return {"a": a, "b": 1.0 - a}

    async def score(group):
        name = group.prompt.prompt_id
        return tuple(Score(total=1.0, parts=parts(name, s)) for _, s in group.samples_G)

    company.score = score
    collected = await feed.take(1, StepClock())
    assert [r.prompt.prompt_id for r in resolve(collected.groups)] == [*kept, *kept]


@pytest.mark.parametrize("algorithm", [{}, DYNAMIC], ids=["plain", "dynamic"])
async def test_a_group_that_failed_ends_the_others_and_is_sampled_again(tmp_path, algorithm):
    feed, company, order = feed_on(tmp_path, by_sample, **algorithm)
    generate, ended = company.generate, []

    async def lasting(draw):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(draw)
            raise

    async def failing(draw):
        raise RunError(f"draw {draw} is gone")

    async def broken(requests, *, together):
        return [(failing if r.draw == 2 else lasting)(r.draw) for r in requests]

    company.generate = broken
    with pytest.raises(RunError, match="draw 2 is gone"):
        await feed.take(1, StepClock())
    await asyncio.sleep(0)
    assert ended == [0, 1, 3]
    company.generate = generate
    collected = await feed.take(1, StepClock())
    assert [(g.draw, g.prompt.prompt_id) for g in collected.groups] == [
        (n, f"p{n}") for n in range(4)
    ]
    assert order.position == 4, "no prompt is passed over"


class Unsteady(Company):
    """Any call of it may fail, or be cut off by whoever waits, as `dice` has it."""

    def __init__(self, *arguments, dice):
        super().__init__(*arguments)
        self.dice, self.failed_at = dice, defaultdict(list)

    async def trip(self):
        await asyncio.sleep(0)
        if self.dice.random() < 0.2:
            raise RunError("a replica died")
        if self.dice.random() < 0.1:
            asyncio.current_task().cancel()
            await asyncio.sleep(0)

    async def generate(self, requests, *, together=True):
        await self.trip()
        return [
            self.unsteady(answer) for answer in await super().generate(requests, together=together)
        ]

    async def unsteady(self, answer):
        group = await answer
        for _ in range(self.dice.randrange(3)):
            await asyncio.sleep(0)
        if self.dice.random() < 0.1:
            raise RunError("a group was lost")
        self.fail(("environment", group.draw))
        return group

    def fail(self, at):
        """Never thrice at one of a group's kinds of code."""
        if len(self.failed_at[at]) < 2 and self.dice.random() < 0.3:
            self.failed_at[at].append(cause := self.dice.choice(FAILURE_CAUSES))
            raise GroupFailed.of("a user's code", cause=cause)

    async def score(self, group):
        if self.config.algorithm.dynamic_sampling.enabled:
            await self.trip()
        self.fail(("reward", group.draw))
        return await super().score(group)


async def steps_of(feed, num_steps):
    steps = []
    while len(steps) < num_steps:
        try:
            collected = await feed.take(len(steps) + 1, StepClock())
        except (RunError, asyncio.CancelledError):
            continue
        steps.append(
            (resolve(collected.groups), await totals_of(feed, collected), collected.num_refilled)
        )
    return steps


def told(steps):
    return [
        ([(r.draw, r.sample, r.prompt.prompt_id) for r in rollouts], totals, num_refilled)
        for rollouts, totals, num_refilled in steps
    ]


@pytest.mark.parametrize("algorithm", [{}, DYNAMIC], ids=["plain", "dynamic"])
@pytest.mark.parametrize("seed", range(8))
async def test_failures_at_any_wait_lose_no_prompt_and_change_no_step(tmp_path, algorithm, seed):
    def some_alike(prompt_id, sample):
        return 1.0 if prompt_id in {"p1", "p4", "p5"} else float(sample)

    feed, _, order = feed_on(tmp_path, some_alike, **algorithm)
    undisturbed = told(await steps_of(feed, 6))
    config = feed.config
    again = RowsInOrder(make_prompts(10), seed=0, shuffle=False)
    company = Unsteady(config, some_alike, dice=random.Random(seed))
    feed = Feed(config, again, engine=company, reward=company, publishes=True)
    assert told(await steps_of(feed, 6)) == undisturbed
    assert again.position == order.position
    assert not (feed.admission.running or feed._rows or feed._groups or feed._scored)
