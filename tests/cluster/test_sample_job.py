"""The sampling job on real engines: resumed, it writes what the undisturbed one does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from jobs import SCORERS

from actors.pool.pool import Pool
from actors.roles.job_pool import JobPool
from launch.run.folder import run_folder
from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.errors import RunError
from rlhf_ray.jobs.online import SAMPLE


@pytest.fixture
def sample_config(make_config):
    """`sample_config(run_dir, at_call)`: rewards fail once, in the call of that number."""

    def make(run_dir: Path, at_call: int) -> SampleConfig:
        values = make_config(run_dir).model_dump(mode="json", exclude_unset=True)
        arguments = {"calls": str(run_dir.with_suffix(".calls")), "at_call": at_call}
        scorer = {"path": f"{SCORERS}:breaks_down", "arguments": arguments}
        for name in ("algorithm", "value", "reference"):
            del values[name]
        values["reward"] = {"functions": [scorer]}
        values["failures"] = {"row": {"retries": 0, "then": "stop"}}
        return SampleConfig.model_validate(values)

    return make


def run(config: SampleConfig, pool: Pool) -> list[dict[str, Any]]:
    """The job; returns its metrics."""
    job = SAMPLE.prepare(config)
    with run_folder(config) as folder:
        asyncio.run(job.run(JobPool(pool, config)))
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_writes_what_the_undisturbed_one_does(pool, sample_config, tmp_path):
    steps = run(sample_config(tmp_path / "whole", 0), pool)
    assert [step["step"] for step in steps] == [0, 1, 2, 3]
    for step in steps[1:]:
        assert step["wait/policy"] > 0
        assert step["memory/rollout_peak_gb"] > 0.1
        assert step["engine/running_mean"] > 0

    cut = sample_config(tmp_path / "cut", 8)  # amid step 2: a call for each of 5 prompts
    with pytest.raises(RunError, match=r"reward.*the scorer went away"):
        run(cut, pool)
    before = (tmp_path / "cut/samples.jsonl").read_bytes()
    assert len(before.splitlines()) == 10
    steps = run(cut.model_copy(update={"resume": "auto"}), pool)
    assert [step["step"] for step in steps] == [0, 1, 2, 3]
    for name in ("samples.jsonl", "pairs.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (tmp_path / "cut/samples.jsonl").read_bytes().startswith(before)
