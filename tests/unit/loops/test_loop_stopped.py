"""A run that is asked to end: after its step, or at once where it waits for rollouts."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from fake_companies import HashedCompany
from fake_sink import FakeSink
from fake_supervised import FakeSupervised
from fakes import make_config, make_prompts
from test_loop_sampling import loop_of as sample_loop_of
from test_loop_sampling import sample_config
from test_loop_supervised import loop_of as supervised_loop_of
from test_loop_supervised import make_config as supervised_config

from rlhf_ray.errors import RunError
from rlhf_ray.loops.checkpoints import CheckpointStore
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.loops.stopping import Stop
from rlhf_ray.metrics import MetricsLog


class AskingCompany(HashedCompany):
    """Asks to stop at the `number`-th call of a kind."""

    def __init__(self, config, *, at="", number=1, fails=False, scoring=None):
        scoring = scoring or (lambda prompt, sample: float(sample))
        super().__init__(config, scoring, delays=random.Random(0))
        self.at, self.number, self.fails = at, number, fails
        self.stop, self.answer = Stop(), ""

    def said(self, call):
        super().said(call)
        of_kind = [each for each in self.calls if self.at and each.startswith(self.at)]
        if call.startswith(self.at) and len(of_kind) == self.number:
            self.answer = self.stop.ask()
            assert not self.stop.ask(), "a second one is not heeded"
            if self.fails:
                raise RunError("the policy died")

    async def save(self, folder):
        await super().save(folder)
        (Path(folder) / "weights").write_text(self.weights)

    async def restore(self, folder):
        self.weights = (Path(folder) / "weights").read_text()


def config_of(run_dir, max_staleness=0, **settings):
    return make_config(run_dir, total_steps=5, max_staleness=max_staleness, **settings)


def latest(run_dir):
    return CheckpointStore(run_dir, keep=2).latest()


async def train(config, company, sink=None):
    log = MetricsLog([sink or FakeSink()])
    roles = company.roles(value=False)
    loop = OnlineLoop(config, roles, make_prompts(9), Evaluation(config, []), log)
    await loop.run(latest(Path(config.run_dir)), company.stop)


@pytest.mark.parametrize("every", [0, 2])
@pytest.mark.parametrize(
    ("at", "number", "saved"),
    [
        ("rollout.generate", 1, None),
        ("rollout.generate", 3, 2),
        ("reward.score", 9, 2),
        ("policy.logprobs", 3, 3),
        ("policy.update", 3, 3),
        ("policy.publish@3", 1, 3),
        ("policy.update", 5, 5),
    ],
)
async def test_a_run_that_was_asked_goes_on_as_if_it_had_not_been(
    tmp_path, at, number, saved, every
):
    undisturbed = AskingCompany(config := config_of(tmp_path / "undisturbed"))
    await train(config, undisturbed)
    config = config_of(tmp_path / "run", checkpoint={"every": every})
    company, sink = AskingCompany(config, at=at, number=number), FakeSink()
    with pytest.raises(KeyboardInterrupt):
        await train(config, company, sink)
    assert ("without waiting" in company.answer) == (at in ("rollout.generate", "reward.score"))
    found = latest(tmp_path / "run")
    assert (found.step if found else None) == saved
    assert max(sink.steps) == (saved or 0), "a step that is done is logged"
    resumed = AskingCompany(config)
    await train(config, resumed)
    assert resumed.weights == undisturbed.weights


@pytest.mark.parametrize("at", ["rollout.generate", "policy.update", "reward.score"])
async def test_a_run_that_samples_ahead_ends_and_trains_the_steps_that_are_left(tmp_path, at):
    config = config_of(tmp_path, max_staleness=2)
    company = AskingCompany(config, at=at, number=2)
    with pytest.raises(KeyboardInterrupt):
        await train(config, company)
    found, resumed = latest(tmp_path), AskingCompany(config)
    await train(config, resumed)
    assert resumed.calls.count("policy.update") == 5 - (found.step if found else 0)


async def test_what_fails_after_it_was_asked_is_no_failure(tmp_path, caplog):
    config = config_of(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        await train(config, AskingCompany(config, at="policy.update", fails=True))
    assert "the policy died" in caplog.text


async def test_nobody_heeds_it_before_the_first_step(tmp_path):
    config = config_of(tmp_path)
    company = AskingCompany(config, at="policy.publish@0")
    await train(config, company)
    assert not company.answer
    assert not company.stop.ask()


def test_a_step_that_takes_too_long_is_cut_off(tmp_path):
    config = config_of(tmp_path)
    company = AskingCompany(config, at="policy.update")
    company.stop = Stop(grace_s=0.05)
    ended = []

    async def hang(experience, plan, kl_coefficient):
        company.said("policy.update")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    company.update = hang
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(train(config, company))
    assert ended == [True]
    assert latest(tmp_path) is None


async def test_a_supervised_run_ends_behind_its_step(tmp_path):
    config = supervised_config(tmp_path)
    undisturbed = FakeSupervised()
    await supervised_loop_of(config, undisturbed).run(None)
    config = supervised_config(tmp_path / "run")
    stop, policy = Stop(), FakeSupervised()
    update = policy.update

    async def asking(rows, plan):
        if policy.num_updates == 2:
            assert "after this step" in stop.ask()
        return await update(rows, plan)

    policy.update = asking
    with pytest.raises(KeyboardInterrupt):
        await supervised_loop_of(config, policy).run(None, stop)
    found = latest(tmp_path / "run")
    assert found is not None and found.step == 3
    await supervised_loop_of(config, policy).run(found)
    assert policy.batches == undisturbed.batches


async def test_sampling_ends_amid_a_step_and_writes_every_answer_once(tmp_path):
    def files(run_dir):
        return (run_dir / "samples.jsonl").read_text()

    for name, at in (("whole", ""), ("run", "rollout.generate")):
        config = sample_config(tmp_path / name, total_steps=4)
        company = AskingCompany(config, at=at, number=3)
        try:
            await sample_loop_of(config, company).run(None, company.stop)
        except KeyboardInterrupt:
            found = latest(tmp_path / name)
            assert found is not None and found.step == 2
            await sample_loop_of(config, AskingCompany(config)).run(found)
    assert files(tmp_path / "run") == files(tmp_path / "whole")
