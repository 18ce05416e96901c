"""A run whose driver was killed, wherever, goes on: no draw is lost, none is trained twice.

Each driver is a process of its own on a standing pool, which outlives it: so what becomes of the
work that a killed job left there is tried as well.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from golden_runs import processor
from jobs import MEASURED, SCORERS
from killed_driver import PLACES, digests_of
from standing import Standing, standing_pool

from rlhf_ray.config.tools.yaml_file import write_yaml
from rlhf_ray.rollouts.journal import _sound_records

DRIVER = Path(__file__).with_name("killed_driver.py")
NUM_STEPS = 6
EVERY = 2  # steps a checkpoint
KILLED = -9
PROBE = 8
# Sampling beside training has seats of its own for the probe: the engine is the same so.
MODES: Mapping[str, dict[str, Any]] = {
    "synchronous": {"max_staleness": 0, "rollout": {"max_num_seqs": 64}},
    "ahead": {"max_staleness": 2, "rollout": {"max_num_seqs": 64 - PROBE}},
}
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
# What depends on which requests shared a batch with the probe.
OF_TIMING = ("mismatch/probe_", "mismatch/logprob_abs_max", "async/groups_")


@dataclass(frozen=True, kw_only=True)
class Told:
    """What one driver told of itself."""

    lines: list[dict[str, Any]]

    @classmethod
    def by(cls, log: Path) -> Told:
        return cls(lines=[json.loads(line) for line in log.read_text().splitlines()])

    def of(self, key: str) -> dict[int, Any]:
        """By steps."""
        return {line["step"]: line[key] for line in self.lines if key in line and "step" in line}

    @property
    def asked(self) -> list[int]:
        return [line["asked"] for line in self.lines if "asked" in line]

    @property
    def metrics(self) -> dict[int, dict[str, float]]:
        return {
            step: {k: v for k, v in row.items() if not k.startswith((*MEASURED, *OF_TIMING))}
            for step, row in self.of("metrics").items()
        }


def drive(standing: Standing, folder: Path, mode: str, place: str = "-", number: int = 0) -> Any:
    """One driver's status and words, and what it told."""
    log = folder / f"{len(list(folder.glob('*.log')))}.log"
    log.touch()
    done = standing.script(
        *(str(DRIVER), str(log), place, str(number)),
        *("grpo", str(standing.registry.parent / f"{mode}.yaml")),
        *("--run-dir", str(folder / "run"), "--resume", "auto", "--ray.pool", standing.name),
    )
    return done, Told.by(log)


@pytest.fixture(scope="module")
def standing(stories, shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    texts = (shared_data / "text/tinystories_sample.txt").read_text().split("<|endoftext|>")
    rows = [{"prompt": text.strip()[: 12 + 17 * (n % 7)]} for n, text in enumerate(texts[:11])]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for mode, settings in MODES.items():
        write_yaml(config_of(folder, stories, settings), folder / f"{mode}.yaml")
    with standing_pool(folder, "grpo", folder / "synchronous.yaml", "killed") as standing:
        yield standing


def config_of(folder: Path, model: Path, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "total_steps": NUM_STEPS,
        "prompts_per_step": 3,
        "samples_per_prompt": 3,
        "max_staleness": settings["max_staleness"],
        "data": {"path": str(folder / "prompts.jsonl")},
        "policy": {
            "model": {"path": str(model), "dtype": "float32"},
            "optim": {"lr": 1e-3, "schedule": "linear", "warmup_steps": 3},
            "max_tokens_per_micro_batch": 240,
        },
        "reference": {"model": {"dtype": "float32"}},
        "rollout": {
            "max_new_tokens": 24,
            "kv_cache_gb": 0.25,
            "stop": [" and"],
            **settings["rollout"],
        },
        "reward": {"functions": [{"path": f"{SCORERS}:alike_at_times"}]},
        "publication": {"bucket_mb": 1, "probe_sequences": PROBE},
        "algorithm": {
            "minibatches": 2,
            "kl": {"coefficient": 0.05},
            "dynamic_sampling": {"enabled": True, "max_rounds": 2},
        },
        "checkpoint": {"every": EVERY, "keep": 2},
    }


@pytest.fixture(scope="module")
def undisturbed(standing, tmp_path_factory):
    """Folder and words of a synchronous run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done, told = drive(standing, folder, "synchronous")
    assert done.status == 0, done.said
    assert any(len(draws) > 3 for draws in told.of("sampled").values()), "none was passed over"
    return folder, told


def drawn(rounds: list[Told]) -> dict[int, list[int]]:
    """The draws of each step, as the last driver that took it did; others took the same."""
    steps: dict[int, list[int]] = {}
    for told in rounds:
        steps |= told.of("sampled")
    return steps


def journaled(run_dir: Path) -> set[int]:
    """The draws that are decided on the disk."""
    paths = sorted((run_dir / "rollouts").glob("segment_*.rollouts"))
    return {v["draw"] for path in paths for _, _, v in _sound_records(path) if "draw" in v}


def frontier_of(run_dir: Path) -> int:
    """The first draw that the newest checkpoint does not know."""
    found = sorted((run_dir / "checkpoints").glob("step_*/manifest.json"))
    return int(json.loads(found[-1].read_text())["state"]["frontier"]) if found else 0


def check(standing: Standing, folder: Path, mode: str, undisturbed: Any, cell: Any) -> None:
    """Kill a run and have it go on."""
    run_dir = folder / "run"
    killed, first = drive(standing, folder, mode, *cell)
    assert killed.status == KILLED, killed.said[-3000:]
    # What shows up is decided; steps behind the checkpoint are trained again.
    decided = {draw for draw in journaled(run_dir) if draw >= frontier_of(run_dir)}
    done, second = drive(standing, folder, mode)
    assert done.status == 0, done.said[-3000:]
    rounds = [first, second]

    steps = drawn(rounds)
    assert sorted(steps) == [*range(1, NUM_STEPS + 1)]
    assert [draw for step in sorted(steps) for draw in steps[step]] == [
        *range(sum(map(len, steps.values())))
    ], "each draw once, in order"
    again = first.of("weights").keys() & second.of("weights").keys()
    for key in ("sampled", "kept", "weights"):
        for step in again:
            assert first.of(key)[step] == second.of(key)[step], (key, step)
    for step in first.metrics.keys() & second.metrics.keys():
        assert first.metrics[step] == second.metrics[step], step
    logged = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == [*range(NUM_STEPS + 1)]
    assert not list((run_dir / "rollouts").glob("*"))
    assert not list((run_dir / "checkpoints").glob(".*"))
    if mode == "ahead":
        assert not decided & {*second.asked}, "sampled again"
        ages = [row["async/staleness_max"] for row in logged[1:]]
        assert max(ages) <= 2
    else:
        there, told = undisturbed
        assert digests_of(run_dir) == digests_of(there / "run") != {}
        assert drawn(rounds) == told.of("sampled")
        ours = first.metrics | second.metrics
        assert ours == told.metrics


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_run_goes_on(mode, standing, undisturbed, tmp_path):
    """At a place that another kind of machine has elsewhere."""
    chance = random.Random(processor() + mode)
    place = chance.choice([*PLACES])
    check(standing, tmp_path, mode, undisturbed, (place, EARLY_AND_LATE[place][-1]))


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize(("mode", "place", "number"), CELLS, ids=lambda value: str(value))
def test_wherever_it_is_killed(mode, place, number, standing, undisturbed, tmp_path):
    check(standing, tmp_path, mode, undisturbed, (place, number))
