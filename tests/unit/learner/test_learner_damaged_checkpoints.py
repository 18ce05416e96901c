"""Of checkpoints as DeepSpeed writes them the newest is taken of which no file has changed."""

from __future__ import annotations

import random
import shutil

import pytest
import torch
from damages import contents, damage, whole_steps
from learning import parameters_of, plan_of

from rlhf_ray.errors import ConfigError
from rlhf_ray.loops.checkpoints import CheckpointStore

pytestmark = pytest.mark.timeout(900)  # CPUAdam is compiled at its first use on a machine
SEEDS = (range(20), pytest.param(range(20, 200), marks=pytest.mark.long))
STEPS = (1, 2, 3)


def state_of(learner):
    """Copies of its weights, and its optimiser's moments."""
    optimizer = learner.engine.engine.optimizer
    moments = {
        f"{number}.{key}": value
        for number, state in enumerate(optimizer.state.values())
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    return {name: value.clone() for name, value in {**parameters_of(learner), **moments}.items()}


@pytest.mark.parametrize("seeds", SEEDS, ids=["few", "many"])
def test_what_is_damaged_gives_way_to_the_newest_that_is_whole(
    make_policy, make_value, rows, tmp_path, caplog, seeds
):
    learners = {"policy": make_policy(), "value": make_value()}
    original, states = tmp_path / "original", {}
    for step in STEPS:
        store = CheckpointStore(original, keep=3)
        with store.writing(step) as folder:
            for name, learner in learners.items():
                learner.update(rows, plan_of(rows), *([0.0] if name == "policy" else []))
                learner.save(folder / name)
            store.commit(step, {"position": step}, roles=list(learners))
        states[step] = {name: state_of(learner) for name, learner in learners.items()}
    before, run_dir = contents(original), tmp_path / "run"
    assert len(before) > 3 * 2 * 2, "weights, states and random numbers of each"
    for seed in seeds:
        shutil.copytree(original, run_dir)
        caplog.clear()
        done = damage(run_dir, random.Random(seed))
        whole = whole_steps(before, contents(run_dir))
        there = {path.name for path in (run_dir / "checkpoints").iterdir()}
        store = CheckpointStore(run_dir, keep=3)
        if not whole:
            with pytest.raises(ConfigError, match=r"none of the \d checkpoints"):
                store.latest()
        else:
            found = store.latest()
            assert found.folder.name == whole[-1], (seed, done)
            assert found.state == {"position": found.step}
            for name, learner in learners.items():
                learner.load(found.folder / name)
                wanted = states[found.step][name]
                now = state_of(learner)
                assert now.keys() == wanted.keys()
                assert all(torch.equal(now[key], wanted[key]) for key in now), (seed, done, name)
        for step in there - {*whole}:
            is_older = bool(whole) and step < whole[-1]
            assert f"{step} is not usable" in caplog.text or is_older, (seed, done)
        shutil.rmtree(run_dir)
