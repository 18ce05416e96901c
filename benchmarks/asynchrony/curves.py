"""Rewards by steps of runs that may be 0 to 8 publications stale, corrected and uncorrected.

GRPO on stories with a dense reward (the share of one letter), which a short run learns, at a
learning rate at which staleness tells. All runs see the same number of samples. A run's reward is
that of held-out prompts, answered by the newest weights.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.asynchrony.picture import Curve, Panel, draw
from benchmarks.asynchrony.runs import DATA, PLAIN, Metrics, Runs, open_runs, stories_config
from rlhf_ray.config.base import laid_over
from rlhf_ray.config.online import GrpoConfig

STALENESS = (0, 1, 2, 4, 8)
SEEDS = (0, 1, 2)
# What 4, corrected, must reach of the reward of 0.
GOAL = 0.95
# What is compared: the mean over evaluations of this last share of a run.
LAST_SHARE = 0.25
EVERY = 8
STEPS, LR = 64, 6e-4
REWARD = f"{Path(__file__).with_name('rewards.py')}:share_of_letter"
STORIES = str(DATA / "text/tinystories_sample.txt")
SETTINGS: dict[str, Any] = laid_over(
    PLAIN,
    {
        "prompts_per_step": 8,
        "samples_per_prompt": 8,
        "policy": {"optim": {"schedule": "constant"}},
        "rollout": {"max_new_tokens": 32, "max_num_seqs": 128, "kv_cache_gb": 0.25},
        "reward": {"functions": [{"path": REWARD, "arguments": {"letter": "e"}}]},
        "eval": {
            "data": {"path": STORIES, "limit": 64, "prompt_tokens": 24},
            "every": EVERY,
            "num_prompts": 64,
            "temperature": 1.0,
        },
    },
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: `correction` is the kind of `algorithm.correction`."""

    staleness: int
    correction: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run gave.

    Attributes:
        rewards: Of held-out prompts, by step.
        last: Their mean over the end of the run.
        staleness_mean: Age of the trained tokens in publications, from where it has settled.
        ess: Lowest effective sample size of a step, as a share.
        kl_old: Mean of `policy/kl_old`: how far a step moves the policy, in nats a token.
        seconds: Of all steps.
    """

    cell: Cell
    lr: float
    steps: int
    rewards: dict[int, float]
    last: float
    staleness_mean: float
    ess: float
    kl_old: float
    seconds: float


def cells(seeds: Sequence[int] = SEEDS) -> list[Cell]:
    """Seed by seed, so that what is there at any time can be compared.

    Without staleness there is nothing to correct but the kernels' last bits.
    """
    return [
        Cell(staleness=staleness, correction=correction, seed=seed)
        for seed, staleness, correction in itertools.product(
            seeds, STALENESS, ("truncated", "none")
        )
        if staleness or correction == "truncated"
    ]


def config_of(cell: Cell, *, steps: int, lr: float, folder: Path) -> GrpoConfig:
    """The job of a cell."""
    return stories_config(
        folder / f"staleness-{cell.staleness}-{cell.correction}-{cell.seed}",
        SETTINGS,
        {
            "seed": cell.seed,
            "total_steps": steps,
            "max_staleness": cell.staleness,
            "policy": {"optim": {"lr": lr}},
            "algorithm": {"correction": {"kind": cell.correction, "allow_uncorrected": True}},
        },
    )


def result_of(cell: Cell, metrics: Sequence[Metrics], *, lr: float) -> Result:
    """What the metrics of a run say, those of step 0 first."""
    steps = len(metrics) - 1
    rewards = {
        int(row["step"]): row["eval/reward_mean"] for row in metrics if "eval/reward_mean" in row
    }
    settled = metrics[1 + min(cell.staleness, steps - 1) :]
    return Result(
        cell=cell,
        lr=lr,
        steps=steps,
        rewards={step: round(reward, 4) for step, reward in rewards.items()},
        last=fmean(reward for step, reward in rewards.items() if step > (1 - LAST_SHARE) * steps),
        staleness_mean=fmean(row["async/staleness_mean"] for row in settled),
        ess=min(row["mismatch/ess"] for row in metrics[1:]),
        kl_old=fmean(row["policy/kl_old"] for row in metrics[1:]),
        seconds=round(sum(row["time/step"] for row in metrics[1:]), 1),
    )


def measure(
    runs: Runs,
    wanted: Sequence[Cell],
    *,
    steps: int,
    lr: float,
    folder: Path,
    found: Sequence[Result],
) -> Iterator[Result]:
    """Run each cell that is not `found` with these steps and this learning rate."""
    there = {(result.cell, result.steps, result.lr) for result in found}
    for cell in wanted:
        if (cell, steps, lr) not in there:
            metrics = runs.train(config_of(cell, steps=steps, lr=lr, folder=folder))
            yield result_of(cell, metrics, lr=lr)


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """By correction and staleness over seeds, and whether 4 reaches the reward of 0, corrected.

    It does where its mean over seeds is at least `GOAL` of that of 0.
    """
    rows, kept = {}, dict[tuple[str, int], list[Result]]()
    for result in results:
        kept.setdefault((result.cell.correction, result.cell.staleness), []).append(result)
    for (correction, staleness), of_seeds in sorted(kept.items()):
        last = [result.last for result in of_seeds]
        rows[f"{correction} {staleness}"] = {
            "seeds": [result.cell.seed for result in of_seeds],
            "last": _mean_and_spread(last),
            "steps to 0.9": [_steps_to(r.rewards, 0.9) for r in of_seeds],
            "last of each": [round(reward, 3) for reward in last],
            "whole run": _mean_and_spread([fmean(r.rewards.values()) for r in of_seeds]),
            "staleness_mean": fmean(r.staleness_mean for r in of_seeds),
            "lowest ess": min(r.ess for r in of_seeds),
        }
    said: dict[str, Any] = {"by correction and staleness": rows}
    fresh, stale = (
        [result.last for result in kept.get(("truncated", staleness), [])] for staleness in (0, 4)
    )
    if len(fresh) > 1 and len(stale) > 1:
        error = math.sqrt(stdev(fresh) ** 2 / len(fresh) + stdev(stale) ** 2 / len(stale))
        said["4 below 0, corrected"] = fmean(fresh) - fmean(stale)
        said["standard error of that"] = error
        said["4 / 0, corrected"] = fmean(stale) / fmean(fresh)
        said["goal"] = GOAL
        said["holds"] = fmean(stale) >= GOAL * fmean(fresh)
    return said


def _steps_to(rewards: Mapping[int, float], reward: float) -> int | None:
    """The first evaluated step with the reward."""
    return next((step for step, reached in sorted(rewards.items()) if reached >= reward), None)


def _mean_and_spread(values: Sequence[float]) -> str:
    spread = stdev(values) if len(values) > 1 else math.nan
    return f"{fmean(values):.3f} ± {spread:.3f}"


def panels_of(results: Sequence[Result]) -> list[Panel]:
    """With correction and without; 0 is in both."""
    panels = []
    for title, correction in (("corrected (truncated)", "truncated"), ("uncorrected", "none")):
        curves = []
        for staleness in STALENESS:
            kind = correction if staleness else "truncated"
            of_seeds = [r for r in results if r.cell.staleness == staleness]
            if of_seeds := [r for r in of_seeds if r.cell.correction == kind]:
                curves.append(Curve(label=f"max_staleness {staleness}", points=_points(of_seeds)))
        panels.append(Panel(title=title, curves=curves))
    return panels


def _points(results: Sequence[Result]) -> dict[float, tuple[float, float, float]]:
    shared = set.intersection(*(set(result.rewards) for result in results))
    points = {}
    for step in sorted(shared):
        rewards = [result.rewards[step] for result in results]
        points[float(step)] = min(rewards), fmean(rewards), max(rewards)
    return points


def read(path: Path) -> list[Result]:
    """What `write` has written; nothing where no file is."""
    if not path.exists():
        return []
    return [
        Result(
            **{
                **row,
                "cell": Cell(**row["cell"]),
                "rewards": {int(step): reward for step, reward in row["rewards"].items()},
            }
        )
        for row in json.loads(path.read_text())["runs"]
    ]


def write(path: Path, results: Sequence[Result]) -> None:
    """Numbers as JSON, and beside it the curves as an SVG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    said = summary(results) | {"runs": [asdict(result) for result in results]}
    path.write_text(json.dumps(said, indent=1) + "\n")
    samples = SETTINGS["prompts_per_step"] * SETTINGS["samples_per_prompt"]
    draw(
        path.with_suffix(".svg"),
        panels_of(results),
        x_label=f"steps of {samples} samples",
        y_label="reward on held-out prompts",
        caption=(
            f"GRPO on stories, share of the letter e, lr {results[0].lr:g}; "
            f"mean, lowest and highest of {len({r.cell.seed for r in results})} seeds"
        ),
    )


def curves(
    *, steps: int, lr: float, seeds: Sequence[int], path: Path, folder: Path
) -> dict[str, Any]:
    """Run what `path` does not hold yet of these settings, and write it after each run."""
    results = [result for result in read(path) if (result.steps, result.lr) == (steps, lr)]
    wanted = cells(seeds)
    first = config_of(wanted[0], steps=steps, lr=lr, folder=folder)
    with open_runs(first) as runs:
        for result in measure(runs, wanted, steps=steps, lr=lr, folder=folder, found=results):
            results.append(result)
            write(path, results)
    return summary(results)
