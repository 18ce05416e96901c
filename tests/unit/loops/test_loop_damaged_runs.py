"""Whatever of a run's files is damaged is seen, and the run ends with an undisturbed one's weights.

The files of a run whose process died are damaged in a place and a way that a seed chooses; then it
is resumed.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from pathlib import Path

import pytest
from damages import contents, damage, whole_steps
from fake_sink import FakeSink
from fakes import make_prompts, resolve
from test_loop_keeper import Mortal, config_of

from rlhf_ray.errors import ConfigError, RunError
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.loops.setup import checkpoint_to_resume
from rlhf_ray.metrics import MetricsLog

STEPS = 6
SEEDS = (range(20), pytest.param(range(20, 200), marks=pytest.mark.long))


class Killed(Mortal):
    """Its process dies in the update of a step."""

    def __init__(self, config, step):
        super().__init__(config)
        self.last_step = step

    async def update(self, experience, plan, kl_coefficient):
        if self.version + 1 == self.last_step:
            raise RunError("killed")
        return await super().update(experience, plan, kl_coefficient)

    async def build(self, groups, **others):
        """Its weights follow from the answers too, whose tokens may come from the journal."""
        experiences, metrics = await super().build(groups, **others)
        rollouts = resolve([scored.group for scored in groups])
        answers = repr([(r.text, r.response_ids_T.tolist()) for r in rollouts])
        return [rows + answers for rows in experiences], metrics


async def run(folder, *, dies_in=0):
    """The company of a run on a folder, which goes on from what is there."""
    # Sampled ahead, so that the journal has more than the step that was cut off.
    config = config_of(
        folder, total_steps=STEPS, resume="auto", checkpoint={"every": 1, "keep": 3},
        max_staleness=2, algorithm={"correction": {"kind": "none", "allow_uncorrected": True}},
    )  # fmt: skip
    company, prompts = Killed(config, dies_in), make_prompts(9)
    evaluation = Evaluation(config, [])
    loop = OnlineLoop(config, company.roles(), prompts, evaluation, MetricsLog([FakeSink()]))
    await loop.run(checkpoint_to_resume(config, prompts))
    return company


def is_cut_between_records(before, after):
    """As a process leaves it that died before it wrote more: nobody can tell."""
    return before.startswith(after) and before[len(after) :].startswith(b"RHJ\n") and after


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run that died in step 6, and the weights that it would have had."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        undisturbed = asyncio.run(run(tmp_path_factory.mktemp("undisturbed")))
        folder = tmp_path_factory.mktemp("killed")
        with pytest.raises(RunError, match="killed"):
            asyncio.run(run(folder, dies_in=STEPS))
    return folder, undisturbed.weights


def damaged_segments(before, after):
    """Names of those of which nothing may be silent."""
    return {
        Path(name).name
        for name, data in after.items()
        if name.startswith("rollouts")
        and data != before[name]
        and not is_cut_between_records(before[name], data)
    }


@pytest.mark.parametrize("seeds", SEEDS, ids=["few", "many"])
def test_what_is_damaged_is_seen_and_made_good(killed, tmp_path, caplog, monkeypatch, seeds):
    original, weights = killed
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    before, num_refused = contents(original), 0
    for seed in seeds:
        folder = tmp_path / str(seed)
        shutil.copytree(original, folder)
        caplog.clear()
        done = damage(folder, random.Random(seed))
        after = contents(folder)
        there = {path.name for path in (folder / "checkpoints").iterdir()}
        whole = whole_steps(before, after)
        if not whole and there:
            with pytest.raises(ConfigError, match=r"none of the \d checkpoints"):
                asyncio.run(run(folder))
            num_refused += 1
            continue
        company = asyncio.run(run(folder))
        assert company.weights == weights, (seed, done)
        said = caplog.text
        for step in there - {*whole}:
            assert f"{step} is not usable" in said or step < whole[-1], (seed, done)
        for segment in damaged_segments(before, after):
            assert f"{segment} is" in said or f"{segment} has no" in said, (seed, done)
        first = int(whole[-1][-8:])
        assert company.calls.count("policy.update") == STEPS - first, "the newest whole one"
        shutil.rmtree(folder)
    assert num_refused <= len(seeds) / 20, "three steps are kept, two parts are damaged"
