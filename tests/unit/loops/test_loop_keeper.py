"""A run in which roles lose their state goes back, and ends as if they had not."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from fake_companies import HashedCompany
from fake_sink import FakeSink
from fake_supervised import FakeSupervised
from fakes import FakeValue, make_config, make_prompts
from test_loop_supervised import loop_of as supervised_loop_of
from test_loop_supervised import make_config as supervised_config

from rlhf_ray.errors import ResultsLost, RunError, StateLost
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.metrics import MetricsLog

# What a clock says, and what recovery itself does; calls at which a role may die.
# What may die, and what a clock or recovery itself says.
MORTAL = ("policy.", "value.", "rollout.generate")
OF_TIME = ("time/", "share/", "perf/", "recovery/", "rollout/tokens_per_s", "sync/")


class Mortal(HashedCompany):
    """At calls that are chosen, policy and critic lose what they have learned.

    Attributes:
        deaths: Numbers of calls at which that happens.
    """

    def __init__(self, config, deaths=()):
        super().__init__(config, lambda prompt, sample: float(sample))
        self.deaths = set(deaths)
        self.critic = MortalValue(self)

    def roles(self, *, value=True):
        return replace(super().roles(value=value), value=self.critic if value else None)

    def said(self, call):
        super().said(call)
        if call.startswith(MORTAL) and len(self.calls) in self.deaths:
            role = call.partition(".")[0]
            if role != "rollout":
                self.weights = "lost"
            raise StateLost.named(role, "it died")

    async def save(self, folder):
        await super().save(folder)
        (Path(folder) / "weights").write_text(self.weights)

    async def restore(self, folder):
        self.said("policy.restore")
        self.weights = (Path(folder) / "weights").read_text() if folder else ""


class MortalValue(FakeValue):
    num_updates = 0

    async def update(self, experience, plan):
        told = await super().update(experience, plan)
        self.num_updates += 1
        return {**told, "explained_variance": self.num_updates}

    async def save(self, folder):
        await super().save(folder)
        (Path(folder) / "weights").write_text(str(self.num_updates))

    async def restore(self, folder):
        await super().restore(folder)
        self.num_updates = int((Path(folder) / "weights").read_text()) if folder else 0


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Nothing here is about what outlives the machine."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def config_of(run_dir, **settings):
    return make_config(
        run_dir,
        **{
            "total_steps": 5,
            "checkpoint": {"every": 2, "keep": 2},
            "eval": {"every": 1, "data": {"path": "held_out.jsonl"}},
            **settings,
        },
    )


async def run(config, deaths=()):
    company, sink = Mortal(config, deaths), FakeSink()
    prompts = make_prompts(12)
    evaluation = Evaluation(config, prompts[9:])
    loop = OnlineLoop(config, company.roles(), prompts[:9], evaluation, MetricsLog([sink]))
    await loop.run(None)
    return company, sink


def told(sink):
    return {
        step: {k: v for k, v in metrics.items() if not k.startswith(OF_TIME)}
        for step, metrics in sink.steps.items()
    }


@pytest.mark.parametrize("every", [0, 2])
async def test_wherever_a_role_dies_the_weights_are_those_of_an_undisturbed_run(tmp_path, every):
    """At max_staleness 0; nothing is told twice, and nothing is missing."""
    settings = {"checkpoint": {"every": every, "keep": 2}}
    undisturbed, expected = await run(config_of(tmp_path / "undisturbed", **settings))
    for number, call in enumerate(undisturbed.calls, 1):
        if not call.startswith(MORTAL):
            continue
        company, sink = await run(config_of(tmp_path / f"{number}", **settings), [number])
        assert company.weights == undisturbed.weights, number
        assert company.critic.num_updates == 5
        assert [record.step for record in sink.records] == list(range(6))
        assert told(sink) == told(expected), number
        tables = [table.step for table in sink.tables]
        assert tables == [table.step for table in expected.tables]
        assert len(company.calls) > len(undisturbed.calls), "it has died"


async def test_deaths_that_come_amid_recovery_are_recovered_from(tmp_path):
    undisturbed, _ = await run(config_of(tmp_path / "undisturbed"))
    dice = random.Random(0)
    for number in range(10):
        deaths = dice.sample(range(1, 90), 6)
        company, sink = await run(config_of(tmp_path / f"{number}"), deaths)
        assert company.weights == undisturbed.weights, deaths
        assert [record.step for record in sink.records] == list(range(6))


async def test_draws_that_were_decided_are_not_sampled_again(tmp_path):
    undisturbed, _ = await run(config_of(tmp_path / "undisturbed"))
    at = undisturbed.calls.index("policy.publish@5") + 1
    company, sink = await run(config_of(tmp_path / "died"), [at])
    draws = [request.draw for request in company.requests if request.draw >= 0]
    assert len(draws) == len(set(draws)) == 20
    assert sink.steps[5]["recovery/replayed_steps"] == 0
    assert sink.steps[5]["recovery/seconds"] >= 0


async def test_the_next_new_step_says_what_recovery_has_cost(tmp_path):
    never = {"checkpoint": {"every": 0}}
    undisturbed, _ = await run(config_of(tmp_path / "undisturbed", **never))
    at = [n for n, call in enumerate(undisturbed.calls, 1) if call == "policy.logprobs"][3]
    company, sink = await run(config_of(tmp_path / "died", **never), [at])
    [step] = [step for step, metrics in sink.steps.items() if "recovery/seconds" in metrics]
    assert step == 4
    assert sink.steps[4]["recovery/replayed_steps"] == 3
    assert company.calls.count("policy.restore") == 1


async def test_what_follows_the_last_step_is_done_from_its_checkpoint(tmp_path):
    config = config_of(tmp_path)
    company, sink = Mortal(config), FakeSink()
    evaluation = Evaluation(config, [])
    loop = OnlineLoop(config, company.roles(), make_prompts(9), evaluation, MetricsLog([sink]))
    await loop.run(None)
    weights, tries = company.weights, []

    async def export():
        tries.append(company.weights)
        if len(tries) < 3:
            company.weights = "lost"
            raise StateLost.named("policy", "it died")
        return "exported"

    assert await loop.with_result(export) == "exported"
    assert tries == [weights] * 3


class Forgetful(HashedCompany):
    """Whose roles live, while what they made of a step is lost at some calls.

    Attributes:
        losses: Numbers of calls at which that happens, of those that read what others have made.
    """

    READ = ("policy.logprobs", "policy.update", "reward.score")

    def __init__(self, config, losses=()):
        super().__init__(config, lambda prompt, sample: float(sample))
        self.losses, self.num_reads = set(losses), 0

    def said(self, call):
        super().said(call)
        if call in self.READ:
            self.reads()

    def reads(self):
        self.num_reads += 1
        if self.num_reads in self.losses:
            raise ResultsLost.named("the object store", "its node is gone")

    async def fetch(self, groups):
        self.reads()
        return await super().fetch(groups)

    async def save(self, folder):
        await super().save(folder)
        (Path(folder) / "weights").write_text(self.weights)

    async def restore(self, folder):
        self.weights = (Path(folder) / "weights").read_text() if folder else ""


async def forgetful_run(config, losses=()):
    company, sink = Forgetful(config, losses), FakeSink()
    prompts = make_prompts(9)
    loop = OnlineLoop(config, company.roles(), prompts, Evaluation(config, []), MetricsLog([sink]))
    await loop.run(None)
    return company, sink


async def test_wherever_a_step_s_results_are_lost_it_is_done_again(tmp_path):
    """Groups that are in the journal are not sampled again, though their rollouts are gone."""
    undisturbed, expected = await forgetful_run(config_of(tmp_path / "undisturbed"))
    num_draws = len(undisturbed.requests)
    assert undisturbed.num_reads > 20
    for number in range(1, undisturbed.num_reads + 1):
        company, sink = await forgetful_run(config_of(tmp_path / f"{number}"), [number])
        assert company.weights == undisturbed.weights, number
        assert told(sink) == told(expected), number
        assert len(company.requests) <= num_draws + config_of(tmp_path).prompts_per_step


async def test_results_that_are_lost_each_time_end_the_run(tmp_path):
    config = config_of(tmp_path, failures={"actor": {"restarts": 2}})
    with pytest.raises(RunError, match=r"its node is gone \(the run went back 2 times"):
        await forgetful_run(config, range(5, 999))


class MortalSupervised(FakeSupervised):
    """Loses what it has learned at a call."""

    def __init__(self, death=0):
        super().__init__()
        self.death, self.num_calls = death, 0

    def dies(self):
        self.num_calls += 1
        if self.num_calls == self.death:
            self.num_updates = -99
            raise StateLost.named("policy", "it died")

    async def hardware(self):
        self.dies()
        return await super().hardware()

    async def update(self, rows, plan):
        self.dies()
        self.trained = [*self.trained_at(self.num_updates), [row.example_id for row in rows]]
        return await super().update(rows, plan)

    trained: list[list[str]] = []

    def trained_at(self, num_updates):
        return self.trained[:num_updates]

    async def evaluate(self, rows):
        self.dies()
        return await super().evaluate(rows)

    async def save(self, folder):
        self.dies()
        await super().save(folder)

    async def restore(self, folder):
        if folder:
            await super().restore(folder)
        else:
            self.num_updates = 0


@pytest.mark.parametrize("every", [0, 2])
async def test_a_supervised_run_trains_every_row_once_wherever_its_role_dies(tmp_path, every):
    async def run(name, death):
        config = supervised_config(
            tmp_path / name, checkpoint={"every": every, "keep": 2}, eval={"every": 1}
        )
        policy, sink = MortalSupervised(death), FakeSink()
        await supervised_loop_of(config, policy, held_out=3, recorder=sink).run(None)
        return policy, sink

    undisturbed, expected = await run("undisturbed", 0)
    for death in range(1, undisturbed.num_calls + 1):
        policy, sink = await run(f"{death}", death)
        assert policy.trained == undisturbed.trained, death
        assert told(sink) == told(expected), death
        assert policy.num_calls > undisturbed.num_calls


async def test_another_failure_ends_the_run(tmp_path):
    config = supervised_config(tmp_path)
    policy = MortalSupervised()

    async def fails(rows, plan):
        raise RunError("no room")

    policy.update = fails
    with pytest.raises(RunError, match="no room"):
        await supervised_loop_of(config, policy).run(None)
