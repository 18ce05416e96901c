"""Sampling beside training, and runs that go on after their driver was killed, wherever.

Each driver is a process of its own on a standing pool, which outlives it: so what becomes of the
work that a killed job left there is tried as well.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ahead_jobs import DRIVER, MODES, Told, drive
from golden_runs import processor
from killed_driver import PLACES, digests_of
from standing import Command, Standing, process_of, run_python, shared_memory

from rlhf_ray.rollouts.journal import _sound_records

NUM_STEPS = 6
KILLED = -9
# How often the driver is there before it is gone: in the first step, and behind a checkpoint.
EARLY_AND_LATE: Mapping[str, tuple[int, ...]] = {
    "load": (2,),
    "publish": (1, 2, 5),
    "request": (1, 2, 16),
    "generate": (1, 2, 16),
    "score": (1, 2, 16),
    "record": (1, 2, 16),
    "take": (1, 4),
    "update": (1, 4),
    "log": (1, 2, 5),
    "save": (1, 2, 3),
    "prune": (1, 2, 3),
    "seal": (1, 2, 3),
    "name": (1, 2, 3),
    "export": (1,),
}
CELLS = [
    (mode, place, number) for mode in MODES for place in PLACES for number in EARLY_AND_LATE[place]
]
TOLD_AHEAD = {
    *("async/staleness_mean", "async/groups_ahead", "async/groups_running", "mismatch/ess"),
    *("mismatch/cut_share", "perf/bubble_share", "wait/policy", "time/wait_rollout"),
}


def logged_in(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def left_in(run_dir: Path) -> list[Path]:
    """Files that a run needs only until it is over."""
    return [*run_dir.glob("rollouts/*"), *run_dir.glob("checkpoints/.*")]


def in_order(steps: Mapping[int, list[int]]) -> bool:
    """Whether steps have each draw once, in the order of the data."""
    draws = [draw for step in sorted(steps) for draw in steps[step]]
    return draws == [*range(len(draws))]


def test_whatever_a_job_does_it_can_do_ahead(standing, tmp_path):
    """A critic, adapters, dynamic sampling, evaluations, stages, engines that another job had."""
    engine = process_of("rollout", standing.run("pool", "status").said)
    file = standing.registry.parent / "pipeline.yaml"
    done = drive(standing, tmp_path / "log", "-", 0, "pipeline", str(file))
    assert done.status == 0, done.said[-3000:]
    told = standing.run("pool", "status").said
    assert process_of("rollout", told) == engine, "it serves jobs that run ahead and that do not"
    for name, bound in (("ppo", 2), ("grpo", 1), ("straight", 0)):
        run_dir = standing.registry.parent / "pipeline" / name
        rows = logged_in(run_dir)
        steps = Told.by(tmp_path / "log", name).of("sampled")
        assert [row["step"] for row in rows[1:]] == sorted(steps) == [*range(1, len(rows))]
        assert in_order(steps)
        assert max(row["async/staleness_max"] for row in rows[1:]) == bound
        for row in rows[1:]:
            assert math.isfinite(row["policy/loss"])
            if bound:
                assert row.keys() >= TOLD_AHEAD
                assert "eval/reward_mean" in row
        assert not left_in(run_dir)


# ---------------------------------------------------------------------------- killed drivers


def go(standing: Standing, folder: Path, mode: str, *place: Any) -> tuple[Command, Told]:
    """One driver of a run: how it ended, and what it told."""
    log = folder / f"{len(list(folder.glob('*.log')))}.log"
    log.touch()
    file = standing.registry.parent / f"{mode}.yaml"
    run = ("grpo", str(file), "--run-dir", str(folder / "run"), "--resume", "auto")
    done = drive(standing, log, *(place or ("-", 0)), *run)
    return done, Told.by(log)


@pytest.fixture(scope="module")
def undisturbed(standing, tmp_path_factory):
    """Folder of a synchronous run, and what it told."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done, told = go(standing, folder, "synchronous")
    assert done.status == 0, done.said[-3000:]
    assert any(len(draws) > 3 for draws in told.of("sampled").values()), "none was passed over"
    return folder / "run", told


def decided_in(run_dir: Path) -> set[int]:
    """Draws that are in the journal and of no step of the newest checkpoint."""
    found = sorted((run_dir / "checkpoints").glob("step_*/manifest.json"))
    frontier = json.loads(found[-1].read_text())["state"]["frontier"] if found else 0
    paths = sorted((run_dir / "rollouts").glob("segment_*.rollouts"))
    draws = {v["draw"] for path in paths for _, _, v in _sound_records(path) if "draw" in v}
    return {draw for draw in draws if draw >= frontier}


def check(
    standing: Standing, folder: Path, mode: str, cell: tuple[str, int], undisturbed: Any
) -> None:
    """Kill a run and have it go on."""
    run_dir = folder / "run"
    killed, first = go(standing, folder, mode, *cell)
    assert killed.status == KILLED, killed.said[-3000:]
    decided = decided_in(run_dir)
    done, second = go(standing, folder, mode)
    assert done.status == 0, done.said[-3000:]

    steps = first.of("sampled") | second.of("sampled")
    assert sorted(steps) == [*range(1, NUM_STEPS + 1)]
    assert in_order(steps)
    # Steps whose groups were known when they were trained first are trained alike again.
    for step in first.of("weights").keys() & second.of("weights").keys():
        for key in ("sampled", "kept", "weights"):
            assert first.of(key)[step] == second.of(key)[step], (key, step)
    for step in first.metrics.keys() & second.metrics.keys():
        assert first.metrics[step] == second.metrics[step], step
    logged = logged_in(run_dir)
    assert [row["step"] for row in logged] == [*range(NUM_STEPS + 1)]
    assert not left_in(run_dir)
    if mode == "ahead":
        assert not decided & {*second.asked}, "sampled again"
        assert max(row["async/staleness_max"] for row in logged[1:]) <= 2
    else:
        straight, told = undisturbed
        assert digests_of(run_dir) == digests_of(straight) != {}
        assert steps == told.of("sampled")
        assert first.metrics | second.metrics == told.metrics


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_run_goes_on(mode, standing, undisturbed, tmp_path):
    """At a place that another kind of machine has elsewhere."""
    place = random.Random(processor() + mode).choice([*PLACES])
    check(standing, tmp_path, mode, (place, EARLY_AND_LATE[place][-1]), undisturbed)


@pytest.mark.long
@pytest.mark.parametrize(("mode", "place", "number"), CELLS, ids=str)
def test_wherever_it_is_killed(mode, place, number, standing, undisturbed, tmp_path):
    check(standing, tmp_path, mode, (place, number), undisturbed)


def of_environment(name: str, value: str) -> list[psutil.Process]:
    """All processes that were started, by whomever, with a variable in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(name) == value:
                found.append(process)
    return found


@pytest.mark.long
def test_a_cluster_of_its_own_goes_with_its_driver(standing, undisturbed, tmp_path):
    """Engines amid a step, their workers and their shared memory; then the run goes on."""
    environment, before = {**standing.environment, "KILLED_RUN": str(tmp_path)}, shared_memory()
    run = ("grpo", str(standing.registry.parent / "synchronous.yaml"), "--resume", "auto")
    run += ("--run-dir", str(tmp_path / "run"))
    log = str(tmp_path / "log")
    killed = run_python([str(DRIVER), log, "generate", "16", *run], environment)
    assert killed.status == KILLED, killed.said[-3000:]
    deadline_s = time.monotonic() + 30
    while left := of_environment("KILLED_RUN", str(tmp_path)):
        assert time.monotonic() < deadline_s, [process.cmdline() for process in left]
        time.sleep(0.5)
    assert not shared_memory() - before
    done = run_python([str(DRIVER), log, "-", "0", *run], environment)
    assert done.status == 0, done.said[-3000:]
    assert digests_of(tmp_path / "run") == digests_of(undisturbed[0]) != {}
    assert not of_environment("KILLED_RUN", str(tmp_path))
