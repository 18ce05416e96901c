"""Running ahead: no group is older than allowed, steps are in the order of draws, none is lost."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import suppress

import pytest
from fake_companies import HashedCompany
from fake_sink import FakeSink
from fakes import make_config, make_prompts, resolve

from rlhf_ray.data.order import RowsInOrder
from rlhf_ray.deadlines import in_thread
from rlhf_ray.errors import GroupFailed, RunError
from rlhf_ray.loops.checkpoints import CheckpointStore
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.metrics.clock import StepClock
from rlhf_ray.rollouts import feed as feeds
from rlhf_ray.rollouts.feed import Feed

DYNAMIC = {"enabled": True, "max_rounds": 3}


class Killed(BaseException):
    """The driver is gone."""


class TimedCompany(HashedCompany):
    """Its calls take a while, and the driver may be killed at any of them.

    Attributes:
        kill_at: The number of the call that the driver does not survive; None for none.
        slow: The draw that takes 200 times as long as the others; None for none.
    """

    def __init__(self, config, scoring, *, delays, kill_at=None, slow=None):
        super().__init__(config, scoring, delays=delays)
        self.kill_at, self.slow, self.num_waits = kill_at, slow, 0
        self.trained: list[list[tuple[int, int]]] = []
        self.weights_of: dict[int, str] = {}

    async def wait(self, factor=1.0):
        self.num_waits += 1
        if self.num_waits == self.kill_at:
            raise Killed
        await asyncio.sleep(factor * self.delays.random() / 2000)

    async def late(self, answer):
        group = await answer
        await self.wait(200 if group.draw == self.slow else 1)
        return group

    async def score(self, group):
        await self.wait()
        return await super().score(group)

    async def logprobs(self, groups, models):
        await self.wait()
        return await super().logprobs(groups, models)

    async def build(self, groups, **others):
        rollouts = resolve([scored.group for scored in groups])
        versions = [(r.draw, int(v)) for r in rollouts for v in r.versions_T]
        self.trained.append(sorted(set(versions)))
        experiences, metrics = await super().build(groups, **others)
        return [f"{experience}{versions}" for experience in experiences], metrics

    async def update(self, experience, plan, kl_coefficient):
        await self.wait(4)
        metrics = await super().update(experience, plan, kl_coefficient)
        self.weights_of[self.version + 1] = self.weights
        return metrics

    async def publish(self, version, *, exactly=False):
        await self.wait()
        await super().publish(version)

    async def save(self, folder):
        await self.wait()
        await super().save(folder)
        with open(f"{folder}/weights", "w") as file:
            file.write(self.weights)

    async def restore(self, folder):
        with open(f"{folder}/weights") as file:
            self.weights = file.read()


def some_alike(prompt_id, sample):
    return 1.0 if prompt_id in {"p1", "p4", "p5"} else float(sample)


def config_of(tmp_path, max_staleness, dynamic=None, **settings):
    return make_config(
        tmp_path,
        total_steps=7,
        max_staleness=max_staleness,
        data={"path": "x", "shuffle": False},
        algorithm={"dynamic_sampling": dynamic or {}},
        checkpoint={"every": 2, "keep": 2},
        empty_steps_to_stop=9,
        **settings,
    )


def loop_of(config, company, recorder=None):
    roles = company.roles(value=False)
    log = MetricsLog([recorder or FakeSink()])
    return OnlineLoop(config, roles, make_prompts(9), Evaluation(config, []), log)


async def run(config, company, recorder=None):
    """As a new process does: from the last checkpoint of the folder."""
    loop = loop_of(config, company, recorder)
    await loop.run(CheckpointStore(tmp := loop.keeper.store.root.parent, keep=2).latest())
    assert not (tmp / "rollouts").exists(), "a run that is over needs no journal"
    return company


@pytest.mark.parametrize("dynamic", [{}, DYNAMIC], ids=["plain", "dynamic"])
@pytest.mark.parametrize("max_staleness", [1, 2, 4])
async def test_the_rows_of_each_step_are_those_of_the_straight_order(
    tmp_path, max_staleness, dynamic
):
    def rows(company):
        return [sorted({draw for draw, _ in step}) for step in company.trained]

    def epochs(recorder):
        return [recorder.steps[step]["data/epoch"] for step in range(1, 8)]

    straight = await run(
        config := config_of(tmp_path / "0", 0, dynamic),
        TimedCompany(config, some_alike, delays=random.Random(0)),
        in_step := FakeSink(),
    )
    for seed in range(3):
        config = config_of(tmp_path / f"{seed + 1}", max_staleness, dynamic)
        recorder = FakeSink()
        company = TimedCompany(config, some_alike, delays=random.Random(seed))
        await run(config, company, recorder)
        assert rows(company) == rows(straight)
        ages = [step - v for step, told in enumerate(company.trained) for _, v in told]
        assert 0 < max(ages) <= max_staleness
        told = [recorder.steps[step]["async/staleness_max"] for step in range(1, 8)]
        assert max(told) == max(ages)
        assert epochs(recorder) == epochs(in_step), "of what is trained, not of what is read"
        # Nothing is sampled for steps that do not come.
        assert len(company.requests) == len(straight.requests)


async def test_a_slow_group_holds_steps_up_and_nothing_is_dropped(tmp_path):
    config = config_of(tmp_path, 1)
    company = TimedCompany(config, some_alike, delays=random.Random(0), slow=9)
    await run(config, company)
    assert [draw for step in company.trained for draw in sorted({d for d, _ in step})] == [
        *range(28)
    ]
    assert max(step - v for step, told in enumerate(company.trained) for _, v in told) <= 1


async def wait_for_threads(loop):
    """A process that is killed takes what it was writing with it; here that goes on."""
    with suppress(RunError):
        await loop.keeper.store.settled()
    for thread in threading.enumerate():
        if thread.name.startswith("the journal"):
            thread.join(timeout=60)


@pytest.mark.parametrize("dynamic", [{}, DYNAMIC], ids=["plain", "dynamic"])
@pytest.mark.parametrize("max_staleness", [0, 2])
async def test_a_killed_run_goes_on_with_what_was_decided(tmp_path, max_staleness, dynamic):
    """Wherever it is killed, and killed again: a step that was trained is trained alike again."""
    dice = random.Random(0)
    config = config_of(tmp_path / "undisturbed", max_staleness, dynamic)
    undisturbed = await run(config, TimedCompany(config, some_alike, delays=dice))
    num_replayed = 0
    for number in range(8):
        config = config_of(tmp_path / f"{number}", max_staleness, dynamic)
        weights_of: dict[int, str] = {}
        company, is_over = undisturbed, False
        while not is_over:
            kill_at = dice.randrange(1, 110)
            company = TimedCompany(config, some_alike, delays=dice, kill_at=kill_at)
            loop = loop_of(config, company)
            checkpoint = loop.keeper.store.latest()
            frontier = checkpoint.state["order"]["position"] if checkpoint else 0
            journaled = set(loop.journal.replay(frontier).draws)
            try:
                await loop.run(checkpoint)
                is_over = True
            except Killed:
                await wait_for_threads(loop)
            asked = {request.draw for request in company.requests}
            num_replayed += len(journaled - asked)
            if max_staleness:
                assert not journaled & asked, "sampled again"
            for step, weights in company.weights_of.items():
                assert weights_of.setdefault(step, weights) == weights, step
        if max_staleness == 0:
            assert company.weights == undisturbed.weights
    assert num_replayed > 5, num_replayed


class PoisonedCompany(TimedCompany):
    """Its rewards or its environments fail at some prompts, whenever they are asked.

    Attributes:
        section: `reward` or `environment`.
        tries: The draws at which they failed, in order.
    """

    def __init__(self, *arguments, section, tries, **keywords):
        super().__init__(*arguments, **keywords)
        self.section, self.tries = section, tries

    def meet(self, section, group):
        if section == self.section and group.prompt.prompt_id in {"p2", "p5"}:
            self.tries.append(group.draw)
            raise GroupFailed.of("it hangs", cause="hung")

    async def late(self, answer):
        group = await super().late(answer)
        self.meet("environment", group)
        return group

    async def score(self, group):
        await self.wait()
        self.meet("reward", group)
        return await super().score(group)


PATIENT = {"row": {"retries": 1, "most_skipped_share": 1.0}}


@pytest.mark.parametrize("dynamic", [{}, DYNAMIC], ids=["plain", "dynamic"])
@pytest.mark.parametrize("max_staleness", [0, 2])
@pytest.mark.parametrize("section", ["reward", "environment"])
async def test_a_draw_that_was_skipped_is_not_met_again(tmp_path, section, max_staleness, dynamic):
    """Killed anywhere, a run trains what the undisturbed one does, and tries no draw anew."""
    dice, tries = random.Random(1), []
    config = config_of(tmp_path / "u", max_staleness, dynamic, failures=PATIENT)
    told = FakeSink()
    company = PoisonedCompany(config, some_alike, delays=dice, section=section, tries=tries)
    undisturbed = await run(config, company, told)
    poisoned = sorted({*tries})
    assert len(poisoned) > 3
    assert all(tries.count(draw) == 2 for draw in poisoned)
    assert not {draw for step in company.trained for draw, _ in step} & {*poisoned}
    for name, number in (("skipped_groups", 1), ("failed_hung", 2), ("failed_crashed", 0)):
        values = [metrics.get(f"{section}/{name}", 0.0) for metrics in told.steps.values()]
        assert sum(values) == number * len(poisoned)
    for number in range(6):
        config = config_of(tmp_path / f"{number}", max_staleness, dynamic, failures=PATIENT)
        known, is_over = set(), False
        while not is_over:
            tries.clear()
            kill_at = dice.randrange(1, 140)
            company = PoisonedCompany(
                config, some_alike, delays=dice, kill_at=kill_at, section=section, tries=tries
            )
            loop = loop_of(config, company)
            checkpoint = loop.keeper.store.latest()
            frontier = checkpoint.state["order"]["position"] if checkpoint else 0
            replay = loop.journal.replay(frontier)
            known = {*(replay.skipped if section == "reward" else replay.unsampled)}
            try:
                await loop.run(checkpoint)
                is_over = True
            except Killed:
                await wait_for_threads(loop)
            assert not known & {*tries}
        if max_staleness == 0:
            assert company.weights == undisturbed.weights


class Unsteady(TimedCompany):
    """Any of its calls may fail."""

    async def wait(self, factor=1.0):
        await super().wait(factor)
        if self.delays.random() < 0.05:
            raise RunError("a replica died")


@pytest.mark.parametrize("seed", range(8))
async def test_failures_lose_no_draw_and_change_no_step(tmp_path, seed):
    config = config_of(tmp_path, 2, DYNAMIC)
    straight = await run(
        config := config_of(tmp_path, 0, DYNAMIC),
        TimedCompany(config, some_alike, delays=random.Random(0)),
    )
    config = config_of(tmp_path, 2, DYNAMIC)
    company = Unsteady(config, some_alike, delays=random.Random(seed))
    order = RowsInOrder(make_prompts(9), seed=0, shuffle=False)
    feed = Feed(config, order, engine=company, reward=company, publishes=True)
    steps, num_failures = [], 0
    while len(steps) < 7:
        try:
            collected = await feed.take(len(steps) + 1, StepClock())
        except RunError:
            num_failures += 1
            continue
        assert len(await feed.scores(collected)) == len(collected.sampled)
        steps.append([group.draw for group in collected.groups])
    assert num_failures
    assert steps == [sorted({draw for draw, _ in step}) for step in straight.trained]
    await feed.aclose()
    assert not (feed.admission.running or feed._rows or feed._groups or feed._scored)


def feed_ahead(tmp_path, scoring):
    config = config_of(tmp_path, 1, DYNAMIC)
    company = HashedCompany(config, scoring, delays=random.Random(0))
    order = RowsInOrder(make_prompts(9), seed=0, shuffle=False)
    return Feed(config, order, engine=company, reward=company, publishes=True), company


async def test_prompts_are_those_of_their_draws_whichever_thread_begins_first(
    tmp_path, monkeypatch
):
    dice = random.Random(0)

    async def in_late_thread(call, **named):
        await asyncio.sleep(dice.random() / 200)
        return await in_thread(call, **named)

    monkeypatch.setattr(feeds, "in_thread", in_late_thread)
    feed, _ = feed_ahead(tmp_path, some_alike)  # each group without spread has one read alone
    for step in range(1, 8):
        collected = await feed.take(step, StepClock())
        names = [(group.draw, group.prompt.prompt_id) for group in collected.sampled]
        assert names == [(draw, f"p{draw % 9}") for draw, _ in names]
        await feed.scores(collected)
    await feed.aclose()


async def test_what_failed_between_two_steps_is_told_before_anything_begins_again(tmp_path):
    feed, company = feed_ahead(tmp_path, lambda prompt_id, sample: float(sample))
    score, asked = company.score, []
    fails = asyncio.Event()

    async def failing(group):
        asked.append(group.draw)
        if group.draw < 4 or asked.count(group.draw) > 1:
            return await score(group)
        await fails.wait() if group.draw == 7 else await asyncio.sleep(600)
        raise RunError("the reward's process died")

    company.score = failing
    await feed.scores(await feed.take(1, StepClock()))
    async with asyncio.timeout(30):
        while len(asked) < 8:
            await asyncio.sleep(0.001)
        fails.set()
        while feed._tasks:
            await asyncio.sleep(0)
    with pytest.raises(RunError, match="the reward's process died"):
        await feed.take(2, StepClock())
    assert sorted(asked) == [*range(8)], "no group is scored once more for nothing"
    collected = await feed.take(2, StepClock())
    assert [group.draw for group in collected.groups] == [4, 5, 6, 7]
    await feed.aclose()
