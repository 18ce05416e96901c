"""A run that broke down in the middle of a step and was resumed ends like an undisturbed one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import SCORERS, TWO_RANKS_SHARED, metrics_of, train, weights_of

from actors.pool.pool import Pool
from actors.ranks.group import RankSpec
from actors.ranks.policy import PolicyRank
from actors.ranks.value import ValueRank
from rlhf_ray.errors import RunError


def settings_of(ranks, stage, calls, at_call):
    learner = {
        "zero": {"stage": stage},
        "optim": {"schedule": "linear", "warmup_steps": 3, "min_lr_share": 0.1},
    }
    scorer = {
        "path": f"{SCORERS}:breaks_down",
        "arguments": {"calls": str(calls), "at_call": at_call},
    }
    settings = {
        "total_steps": 4,
        "checkpoint": {"every": 1, "keep": 4, "export": "each"},
        "policy": learner,
        "value": learner,
        # The state of the controller must be in the checkpoint as well.
        "algorithm": {"kl": {"controller": "adaptive", "target": 0.001, "horizon": 100}},
        "reward": {"functions": [scorer]},
        "failures": {"row": {"retries": 0, "then": "stop"}},
    }
    if ranks == 2:
        settings["placement"] = TWO_RANKS_SHARED
    return settings


def saved_state(run_dir: Path, step: int) -> dict[str, torch.Tensor | float]:
    """What the checkpoint of a step holds, by file and key: optimiser, random state, controllers.

    Of the weights ZeRO writes flat parts, whose padding is whatever memory held.
    """
    found: dict[str, torch.Tensor | float] = {}

    def walk(value, name):
        if "fp32_" in name:
            return
        if isinstance(value, torch.Tensor | int | float | str):
            found[name] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name}/{key}")
        elif isinstance(value, list | tuple):
            for index, inner in enumerate(value):
                walk(inner, f"{name}/{index}")

    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    for path in sorted(folder.rglob("*.pt")):
        walk(torch.load(path, weights_only=False), str(path.relative_to(folder)))
    controllers = json.loads((folder / "manifest.json").read_text())["state"]
    del controllers["setup"]["settings"]  # where the scorer counts its calls
    walk(controllers, "controllers")
    return found


def trained_weights(pool: Pool) -> dict[str, Any]:
    """Of the policy and of the critic, as the pool holds them."""

    async def weights() -> dict[str, Any]:
        policy = await pool.start("policy", RankSpec(actor_class=PolicyRank))
        value = await pool.start("value", RankSpec(actor_class=ValueRank))
        return {"policy": policy, "value": value}

    return {
        f"{role}/{name}": weight
        for role, actors in asyncio.run(weights()).items()
        for name, weight in weights_of(actors).items()
    }


def exports_of(run_dir: Path) -> list[bytes]:
    """The weights beside every checkpoint."""
    files = run_dir.glob("checkpoints/*/export/model.safetensors")
    return [file.read_bytes() for file in sorted(files)]


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 2), (2, 3)], ids=lambda value: str(value))
def test_a_resumed_run_reaches_the_same_bits(
    ranks, stage, pool, shared_pool, make_config, tmp_path
):
    job_pool = pool if ranks == 1 else shared_pool
    undisturbed = tmp_path / "undisturbed"
    train(make_config(undisturbed, **settings_of(ranks, stage, tmp_path / "calls", 0)), job_pool)
    weights_then = trained_weights(job_pool)

    broken = make_config(
        tmp_path / "broken", **settings_of(ranks, stage, tmp_path / "broken_calls", 13)
    )  # amid step 3: a call for each of 5 prompts
    with pytest.raises(RunError, match=r"reward.*the scorer went away"):
        train(broken, job_pool)
    status = json.loads((tmp_path / "broken/status.json").read_text())
    assert status["state"] == "failed"
    assert not (tmp_path / "broken/export").exists()
    assert [line["step"] for line in metrics_of(tmp_path / "broken")] == [0, 1, 2]
    resumed = train(broken.model_copy(update={"resume": "auto"}), job_pool)
    weights_now = trained_weights(job_pool)

    ours, theirs = saved_state(resumed, 4), saved_state(undisturbed, 4)
    assert ours.keys() == theirs.keys()
    for role in ("policy/", "value/"):
        assert any(name.startswith(role) and "exp_avg" in name for name in ours)
    for name, value in theirs.items():
        same = torch.equal(ours[name], value) if torch.is_tensor(value) else ours[name] == value
        assert same, name
    for name, weight in weights_then.items():
        assert np.array_equal(weights_now[name], weight), name
    exports = [exports_of(run) for run in (resumed, undisturbed)]
    assert exports[0] == exports[1]
    assert exports[0][-1] == (resumed / "export/model.safetensors").read_bytes()
    assert len(set(exports[0])) == 4, "each step's own"
    assert metrics_of(resumed) == metrics_of(undisturbed)
