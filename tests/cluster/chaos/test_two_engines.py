"""One of two engines dies at any time: the run goes on with the other, and the new one joins."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deaths import Death
from jobs import DEADLINES, SCORERS

from actors.engines.fleet import State
from actors.pool.pool import Pool
from actors.pool.watch import watched
from actors.roles.job_pool import JobPool
from launch.run.folder import run_folder
from rlhf_ray.config.fault_tolerance import FailureConfig, TimeoutConfig
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.jobs.online import GRPO

KILL, STOP = signal.SIGKILL, signal.SIGSTOP
AHEAD = {"max_staleness": 2, "rollout": {"max_num_seqs": 48}}


@pytest.fixture(scope="module")
def twin_pool(cluster: None) -> Iterator[Pool]:
    """A policy, and two engines that lose their lives."""
    often = FailureConfig.model_validate({"actor": {"restarts": 1000, "backoff_s": 0.0}})
    pool = Pool("twins", TimeoutConfig.model_validate(DEADLINES), failures=often)
    yield pool
    asyncio.run(pool.close())


@pytest.fixture
def make_grpo(make_config: Callable[..., Any], tmp_path: Path) -> Callable[..., GrpoConfig]:
    def make(**sections: Any) -> GrpoConfig:
        config = make_config(
            tmp_path,
            placement={"rollout": {"ranks": 2}},
            checkpoint={"every": 2, "keep": 2},
            reward={"functions": [{"path": f"{SCORERS}:share_of_e"}]},
            **sections,
        )
        values = config.model_dump(mode="json", exclude_unset=True)
        del values["value"], values["algorithm"]
        return GrpoConfig.model_validate(values)

    return make


def survives(
    config: GrpoConfig, pool: Pool, death: Death, *, num_serving: int = 0
) -> list[dict[str, float]]:
    """The run's metrics; at its end both engines are there again."""
    job = GRPO.prepare(config)

    async def train() -> None:
        roles = JobPool(pool, config)
        async with watched(pool):
            await job.run(roles)
            assert roles.engines is not None
            assert len(roles.engines.fleet.those(State.SERVING)) >= num_serving
            await roles.engines.replacement.settled()
            assert len(roles.engines.fleet.those(State.STALE, State.SERVING)) == 2

    with run_folder(config) as folder, death.comes(pool) as has_come:
        asyncio.run(train())
    assert has_come()
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(config.total_steps + 1))
    # Nothing was done again: the policy lost nothing.
    assert not any("recovery/replayed_steps" in step for step in steps)
    assert pool.restarts.budget.num_restarts
    return steps


CELLS = [
    (Death(role="rollout", rank=1, phase=phase, number=1 if phase == "start" else 2, by=by), ahead)
    for phase in ("start", "generate", "publish", "update")
    for by in (KILL, STOP)
    for ahead in (False, True)
]


@pytest.mark.long
@pytest.mark.parametrize(
    ("death", "ahead"), CELLS, ids=lambda one: str(one) if isinstance(one, Death) else f"{one}"
)
def test_a_run_goes_on_with_the_other_engine(death, ahead, twin_pool, make_grpo):
    survives(make_grpo(total_steps=4, **(AHEAD if ahead else {})), twin_pool, death)


@pytest.mark.long
@pytest.mark.parametrize("ahead", [False, True])
def test_both_die_and_the_run_waits_for_the_first(ahead, twin_pool, make_grpo):
    first = Death(role="rollout", rank=0, phase="generate")
    with Death(role="rollout", rank=1, phase="generate", number=3).comes(twin_pool) as has_come:
        survives(make_grpo(total_steps=4, **(AHEAD if ahead else {})), twin_pool, first)
    assert has_come()


@pytest.mark.long
def test_steps_go_on_until_the_new_engine_has_the_weights(twin_pool, make_grpo, caplog):
    """Which it gets while the run goes on: then both serve."""
    config = make_grpo(total_steps=60)
    with caplog.at_level(logging.WARNING):
        death = Death(role="rollout", rank=1, phase="generate")
        steps = survives(config, twin_pool, death, num_serving=2)
    lost_s, there_s = (
        next(record.created for record in caplog.records if text in record.getMessage())
        for text in ("its groups go to others", "is there again")
    )
    # No step has waited for the new engine.
    told_s = [step["time_s"] for step in steps]
    longest_s = max(after - before for before, after in itertools.pairwise(told_s[1:]))
    print(f"new engine after {there_s - lost_s:.1f} s, longest step {longest_s:.1f} s")
    assert longest_s < 0.5 * (there_s - lost_s)
