"""A run that broke down in the middle of a step and was resumed ends like an undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from jobs import SCORERS, TWO_RANKS_SHARED, train

from rlhf_ray.errors import RunError

# What a clock says, and no more, may differ.
TIMED = ("time", "perf/", "rollout/tokens_per_s", "sync/seconds")


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
        "checkpoint": {"every": 1},
        "policy": learner,
        "value": learner,
        # The state of the controller must be in the checkpoint as well.
        "algorithm": {"kl": {"controller": "adaptive", "target": 0.001, "horizon": 100}},
        "reward": {"functions": [scorer]},
    }
    if ranks == 2:
        settings["placement"] = TWO_RANKS_SHARED
    return settings


def saved_state(run_dir: Path, step: int) -> dict[str, torch.Tensor | float]:
    """Everything that the checkpoint of a step holds, by file and key."""
    found: dict[str, torch.Tensor | float] = {}

    def walk(value, name):
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
    walk(json.loads((folder / "manifest.json").read_text())["state"], "controllers")
    return found


def metrics_of(run_dir: Path) -> list[dict[str, float]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith(TIMED)}
        for line in lines
    ]


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 2), (2, 3)], ids=lambda value: str(value))
def test_a_resumed_run_reaches_the_same_bits(
    ranks, stage, pool, shared_pool, make_config, tmp_path
):
    job_pool = pool if ranks == 1 else shared_pool
    undisturbed = tmp_path / "undisturbed"
    train(make_config(undisturbed, **settings_of(ranks, stage, tmp_path / "calls", 0)), job_pool)

    broken = make_config(
        tmp_path / "broken", **settings_of(ranks, stage, tmp_path / "broken_calls", 3)
    )
    with pytest.raises(RunError, match="reward.*the scorer went away"):
        train(broken, job_pool)
    status = json.loads((tmp_path / "broken/status.json").read_text())
    assert status["state"] == "failed"
    assert not (tmp_path / "broken/export").exists()
    assert [line["step"] for line in metrics_of(tmp_path / "broken")] == [0, 1, 2]
    resumed = train(broken.model_copy(update={"resume": "auto"}), job_pool)

    ours, theirs = saved_state(resumed, 4), saved_state(undisturbed, 4)
    assert ours.keys() == theirs.keys()
    optimiser = [name for name in ours if "exp_avg" in name]
    assert any(name.startswith("policy/") for name in optimiser)
    assert any(name.startswith("value/") for name in optimiser)
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(ours[name], value), name
        else:
            assert ours[name] == value, name
    exports = [folder / "export/model.safetensors" for folder in (resumed, undisturbed)]
    assert exports[0].read_bytes() == exports[1].read_bytes()
    assert metrics_of(resumed) == metrics_of(undisturbed)
