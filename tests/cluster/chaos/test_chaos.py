"""Any actor may die at any time: the run ends, with the weights of one that nothing befell."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from deaths import Death
from jobs import DEADLINES, MEASURED, SCORERS, TEMPLATE, metrics_of, process_ids

from actors.pool.pool import Pool
from actors.pool.watch import watched
from actors.roles.job_pool import JobPool
from launch.run.folder import run_folder
from rlhf_ray.config.jobs import JOB_CONFIGS
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.jobs.table import JOBS
from rlhf_ray.rollouts.feed import Feed

STEPS = 3
JOB: dict[str, Any] = {
    "total_steps": STEPS,
    "checkpoint": {"every": 2, "keep": 2},
    "reward": {"functions": [{"path": f"{SCORERS}:share_of_e"}]},
}

# With functions as reward, with a model that was trained, and sampling ahead on the same engine.
ONLINE: dict[str, dict[str, Any]] = {
    "ppo": {},
    "judged": {},
    "ahead": {
        "max_staleness": 2,
        "rollout": {"max_num_seqs": 48},
        "publication": {"probe_sequences": 16},
    },
}
# In an environment: turns that come later share batches by chance.
WORLD = {
    "environment": {
        "path": f"{Path(SCORERS).with_name('worlds.py')}:Echo",
        "max_turns": 2,
        "timeout_s": 20,
    },
    "data": {"chat": True},
    "policy": {"model": {"chat_template": TEMPLATE}},
}
ONLINE["acting"] = WORLD
INEXACT = ("ahead", "acting")
ROLES = ("policy", "value", "reference", "reward_worker", "experience", "rollout")
IN_STEP = ("generate", "score", "update", "publish")
ONCE = ("start", "checkpoint")  # at whose first time there is enough to lose
STOP = signal.SIGSTOP
# A few that between them take every way there is.
SHORT = [
    Death(role="policy", phase="update"),
    Death(role="reference", phase="score"),
    Death(role="value", phase="update", by=STOP),
    Death(role="rollout", phase="generate"),
]
ALL = [
    *(Death(role=role, phase=phase) for role in ROLES for phase in IN_STEP),
    *(Death(role=role, phase=phase, number=1) for role in ROLES for phase in ONCE),
    Death(role="policy", phase="export", number=1),
    *(Death(role=role, phase="update", by=STOP) for role in ROLES),
    *(Death(role="rollout", phase=phase, by=STOP) for phase in ("generate", "publish")),
]


def supervised(model: Path, texts: list[str], folder: Path, run_dir: Path, job: str) -> Any:
    """A job on rows of a data set, which trains the same weights whenever it is run."""
    rows = folder / f"{job}.jsonl"
    columns = ("prompt", "completion") if job == "sft" else ("prompt", "chosen", "rejected")
    rows.write_text(
        "".join(
            json.dumps(dict(zip(columns, (text[:30], text[30:70], text[70:100]), strict=False)))
            + "\n"
            for text in texts
        )
    )
    learner = {"model": {"path": str(model), "dtype": "float32"}, "optim": {"lr": 1e-3}}
    return JOB_CONFIGS[job].model_validate(
        {
            "run_dir": str(run_dir),
            "total_steps": STEPS,
            "batch_size": 4,
            "data": {"path": str(rows)},
            "reward" if job == "rm" else "policy": learner,
            "checkpoint": {"every": 2, "keep": 2},
            "timeouts": DEADLINES,
        }
    )


@pytest.fixture(scope="module")
def trained() -> Iterator[dict[int, list[int]]]:
    """Of the run of now: the draws of each step, as it was taken last."""
    take, draws = Feed.take, dict[int, list[int]]()

    async def taken(feed: Feed, step: int, clock: Any) -> Any:
        collected = await take(feed, step, clock)
        draws[step] = [group.draw for group in collected.sampled]
        return collected

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Feed, "take", taken)
        yield draws


@pytest.fixture(scope="module")
def run(
    pool: Pool,
    trained: dict[int, list[int]],
    make_config: Callable[..., Any],
    stories: Path,
    shared_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """`run(job, death)`: the folder of a run that met it; of one that nothing befell."""
    texts = (shared_data / "text/tinystories_sample.txt").read_text().split("<|endoftext|>")
    data, runs = tmp_path_factory.mktemp("data"), dict[str, Path]()

    def run(kind: str, death: Death | None = None) -> Path:
        if death is None and kind in runs:
            return runs[kind]
        folder = tmp_path_factory.mktemp("run")
        if kind in ONLINE:
            config = make_config(folder, **{**JOB, **ONLINE[kind]})
            if kind == "judged":
                judge = RewardConfig.model_validate({"model": {"path": str(run("rm") / "export")}})
                config = config.model_copy(update={"reward": judge})
        elif kind == "sample":
            values = make_config(folder, **JOB).model_dump(mode="json", exclude_unset=True)
            for name in ("algorithm", "value", "reference", "checkpoint"):
                values.pop(name, None)
            config = SampleConfig.model_validate(values)
        else:
            config = supervised(stories, texts[:12], data, folder, kind)
        job = JOBS["ppo" if kind in ONLINE else kind].prepare(config)

        async def train() -> None:
            trained.clear()
            await pool.heal()  # as before each job of a standing pool
            async with watched(pool):
                await job.run(JobPool(pool, job.config))

        with run_folder(job.config):
            if death is None:
                asyncio.run(train())
                runs[kind] = folder
            else:
                with death.comes(pool) as has_come:
                    asyncio.run(train())
                assert has_come()
        return folder

    return run


@pytest.mark.long
@pytest.mark.parametrize("role", ["policy", "rollout"])
@pytest.mark.parametrize(("phase", "number"), [("publish", 1), ("generate", 7)])
def test_sampling_survives(role, phase, number, pool, run):
    """Nothing is trained, so that nothing is lost with the policy, in its first publication too."""
    before = process_ids(pool)
    written = [
        (run("sample", death) / "samples.jsonl").read_text()
        for death in (None, Death(role=role, phase=phase, number=number))
    ]
    assert written[0] == written[1]
    assert before != process_ids(pool)


def weights_of(folder: Path) -> bytes:
    return (folder / "export/model.safetensors").read_bytes()


def steps_s(folder: Path) -> float:
    """From step 0 to the last, whatever was done between them."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    first, *_, last = (json.loads(line)["time_s"] for line in lines)
    return float(last - first)


def told_of(folder: Path) -> list[dict[str, float]]:
    recovery = ("recovery/", *MEASURED)
    return [
        {name: value for name, value in row.items() if not name.startswith(recovery)}
        for row in metrics_of(folder)
    ]


@pytest.fixture
def survives(
    pool: Pool,
    run: Callable[..., Path],
    trained: dict[int, list[int]],
    caplog: pytest.LogCaptureFixture,
) -> Callable[[str, Death], None]:
    """`survives(job, death)` sees to all that has to be true of a run that met it."""

    def survives(kind: str, death: Death) -> None:
        caplog.clear()
        check_survival(kind, death, pool, run)
        draws = [draw for step in sorted(trained) for draw in trained[step]]
        assert draws == [*range(len(draws))]
        assert bool(draws) == (kind in ONLINE)
        if death.by == STOP:
            name = f"{pool.name}/{death.role}/{death.rank}"
            assert any(name in line and "killed" in line for line in caplog.messages)

    return survives


def check_survival(kind: str, death: Death, pool: Pool, run: Callable[..., Path]) -> None:
    undisturbed = run(kind)
    asyncio.run(pool.heal())
    before, started_s = process_ids(pool), time.monotonic()
    folder = run(kind, death)
    lost_s = steps_s(folder) - steps_s(undisturbed)
    print(f"{kind}, {death}: {time.monotonic() - started_s:.0f} s, {lost_s:.0f} s more in steps")
    told = told_of(folder)
    assert [row["step"] for row in told] == list(range(STEPS + 1))
    # Which requests share a batch decides the last bits of what is sampled, or sampled again.
    if kind not in INEXACT and (death.phase, death.role) != ("generate", "rollout"):
        assert weights_of(folder) == weights_of(undisturbed)
        assert told == told_of(undisturbed)
    after = process_ids(pool)
    assert after.keys() == before.keys()
    replaced = {name for name in after if after[name] != before[name]}
    assert any(f"/{death.role}" in name for name in replaced)
    assert not any(psutil.pid_exists(before[name]) for name in replaced)


@pytest.mark.parametrize("death", SHORT, ids=str)
def test_a_run_survives(death, survives):
    survives("ppo", death)


@pytest.mark.long
@pytest.mark.parametrize("death", ALL, ids=str)
def test_a_run_survives_any_death(death, survives):
    survives("ppo", death)


@pytest.mark.long
def test_who_dies_when_nobody_asks_him_any_more_is_started_for_the_next_run(pool, run):
    death = Death(role="value", phase="export", number=1)
    folders = [run("ppo"), run("ppo", death)]
    assert "value" in pool.state.roles
    folders.append(run("ppo", Death(role="reward_worker", phase="score")))
    assert len({weights_of(folder) for folder in folders}) == 1


@pytest.mark.long
@pytest.mark.parametrize("phase", IN_STEP)
def test_a_run_survives_the_death_of_its_reward_model(phase, survives):
    survives("judged", Death(role="reward", phase=phase))


@pytest.mark.long
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("phase", IN_STEP + ONCE)
def test_a_run_that_samples_ahead_survives(role, phase, survives):
    survives("ahead", Death(role=role, phase=phase, number=1 if phase in ONCE else 2))


@pytest.mark.long
@pytest.mark.parametrize("role", ["environment", "rollout"])
@pytest.mark.parametrize("phase", IN_STEP)
def test_a_run_in_an_environment_survives(role, phase, survives):
    survives("acting", Death(role=role, phase=phase))


def test_what_learns_from_rows_survives(survives):
    survives("sft", Death(role="policy", phase="step", number=3))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sft", "rm", "dpo"])
@pytest.mark.parametrize("phase", ["step", "checkpoint", "export"])
def test_what_learns_from_rows_survives_any_death(kind, phase, survives):
    trained = "reward" if kind == "rm" else "policy"
    number = 3 if phase == "step" else 1
    survives(kind, Death(role=trained, phase=phase, number=number))
