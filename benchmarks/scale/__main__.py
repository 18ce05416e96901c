"""What a group costs the driver of a GRPO run on 4, 64 and 512 GPUs, without a cluster.

    OMP_NUM_THREADS=1 python -m benchmarks.scale

The driver's own code steps through a run: loop, feed, journal, plans, handles, metrics and spans.
Behind the handles stand objects that answer at once. What would be sent to an actor or laid into
Ray's object store is pickled as Ray does it; Ray's own work for a call is not there. A GPU has four
groups of eight samples a step, so that a step on 512 has 16,384. Half of the GPUs train, a quarter
samples and a quarter holds the reference.

The result as JSON: the driver's CPU seconds a group on most GPUs, over those on fewest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import ray

from actors.pool.clocks import Clocks
from actors.pool.usage import usage_of
from benchmarks.scale.answers import SPENT, Answer, Cost
from benchmarks.scale.roles import NEW_TOKENS, PROMPT_TOKENS, SAMPLES, handles_of, roles_of
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.metrics.jsonl import JsonlSink
from rlhf_ray.metrics.spans_file import SpansFile
from rlhf_ray.types import Prompt

GOAL = 1.2
GPUS = (4, 64, 512)
GROUPS_PER_GPU = 4
# Of each run's steps the first one warms up.
ROUNDS, STEPS = 2, 3


def main() -> None:
    """Print the result as JSON."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(json.dumps(drivers_cost()))


def drivers_cost(
    gpus: Sequence[int] = GPUS, *, rounds: int = ROUNDS, steps: int = STEPS
) -> dict[str, Any]:
    """CPU seconds a group at each number of GPUs, in turns, and the last of them over the first.

    The ratio is the median of the rounds'; `pairs` are the last and the first of each.
    """
    by_gpus: dict[int, list[float]] = {num: [] for num in gpus}
    sent: dict[int, float] = {}
    for _ in range(rounds):
        for num, found in by_gpus.items():
            cost = cost_of_a_group(num, steps=steps)
            found.append(cost.seconds)
            sent[num] = cost.num_bytes
    pairs = list(zip(by_gpus[gpus[-1]], by_gpus[gpus[0]], strict=True))
    ratio = median(most / fewest for most, fewest in pairs)
    return {
        "ratio": ratio,
        "goal": GOAL,
        "holds": ratio <= GOAL,
        "pairs": pairs,
        "seconds_a_group": {num: median(found) for num, found in by_gpus.items()},
        "bytes_a_group": sent,
    }


def cost_of_a_group(num_gpus: int, *, steps: int) -> Cost:
    """The median over steps but for the first, of which a group has its share."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder), num_gpus, steps)
        costs = asyncio.run(_run(config))[1:]
    return Cost(
        seconds=median(cost.seconds for cost in costs) / config.prompts_per_step,
        num_bytes=median(cost.num_bytes for cost in costs) / config.prompts_per_step,
    )


def _config(run_dir: Path, num_gpus: int, steps: int) -> GrpoConfig:
    quarter = max(1, num_gpus // 4)
    return GrpoConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "total_steps": steps,
            "prompts_per_step": GROUPS_PER_GPU * num_gpus,
            "samples_per_prompt": SAMPLES,
            "data": {"path": "prompts.jsonl"},
            "policy": {"model": {"path": "model"}},
            "rollout": {"max_new_tokens": NEW_TOKENS},
            "reward": {"functions": [{"path": "scorers:score"}]},
            "algorithm": {"kl": {"coefficient": 0.001}},
            "placement": {
                "policy": {"ranks": 2 * quarter},
                "reference": {"ranks": quarter},
                "rollout": {"ranks": quarter},
            },
        }
    )


async def _run(config: GrpoConfig) -> list[Cost]:
    """What each step costs."""
    put, ray.put = ray.put, Answer.laid_down
    costs: list[Cost] = []
    try:
        handles = handles_of(config)
        clocks, before = Clocks(own="driver"), SPENT.so_far()

        async def usage() -> Any:
            nonlocal before
            used = await usage_of(list(handles.values()), clocks, timeout_s=60.0)
            now = SPENT.so_far()
            costs.append(
                Cost(
                    seconds=now.seconds - before.seconds,
                    num_bytes=now.num_bytes - before.num_bytes,
                )
            )
            before = now
            return used

        prompts = [
            Prompt(prompt_id=f"p{n}", token_ids_T=(1,) * PROMPT_TOKENS, text="a prompt")
            for n in range(config.prompts_per_step)
        ]
        folder = Path(config.run_dir)
        timeline = SpansFile(folder, most_bytes=10**8)
        with MetricsLog([JsonlSink(folder)], timeline=timeline) as log:
            roles = roles_of(config, handles)
            await OnlineLoop(config, roles, prompts, Evaluation(config, []), log, usage=usage).run(
                None
            )
    finally:
        ray.put = put
    return costs[1:]  # what comes before the first step is none of it


if __name__ == "__main__":
    main()
