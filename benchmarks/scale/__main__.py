"""What a group costs the driver of a GRPO run on 4, 64 and 512 GPUs, without a cluster.

    OMP_NUM_THREADS=1 python -m benchmarks.scale

The driver's own code steps through a run: loop, feed, journal, plans, handles, metrics and spans.
Behind the handles stand objects that answer at once. What would be sent to an actor or laid into
Ray's object store is pickled as Ray does it; Ray's own work for a call is not there. A GPU has four
groups of eight samples a step, so that a step on 512 has 16,384. Half of the GPUs train, a quarter
samples and a quarter holds the reference.

The result as JSON: the driver's CPU seconds a group on most GPUs, over those on fewest; and what a
rank of a role is given in a step, and fetches: bytes, and references to objects in Ray's store.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import ray

from actors.cluster.role_handle import RoleHandle
from actors.pool.clocks import Clocks
from actors.pool.usage import usage_of
from benchmarks.scale.answers import SPENT, Answer, Cost, Received
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
RECEIVERS = ("policy", "reference", "experience")
# A run of few GPUs has more steps, as many as have these groups; the first of each warms up.
ROUNDS, GROUPS, LEAST_STEPS = 5, 1024, 2


def main() -> None:
    """Print the result as JSON."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(json.dumps(drivers_cost()))


def drivers_cost(gpus: Sequence[int] = GPUS, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """CPU seconds a group at each number of GPUs, in turns, and the last of them over the first.

    The ratio is the median of the rounds'; `pairs` are the last and the first of each.
    """
    by_gpus: dict[int, list[float]] = {num: [] for num in gpus}
    sent: dict[int, float] = {}
    received: dict[int, Mapping[str, Received]] = {}
    for _ in range(rounds):
        for num, found in by_gpus.items():
            steps = max(LEAST_STEPS, GROUPS // (GROUPS_PER_GPU * num))
            step = cost_of_a_step(num, steps=1 + steps)
            found.append(step.of_group.seconds)
            sent[num], received[num] = step.of_group.num_bytes, step.received
    pairs = list(zip(by_gpus[gpus[-1]], by_gpus[gpus[0]], strict=True))
    ratio = median(most / fewest for most, fewest in pairs)
    return {
        "ratio": ratio,
        "goal": GOAL,
        "holds": ratio <= GOAL,
        "pairs": pairs,
        "seconds_a_group": {num: median(found) for num, found in by_gpus.items()},
        "bytes_a_group": sent,
        "bytes_a_rank": {
            num: {role: round(of_rank.num_bytes) for role, of_rank in of_ranks.items()}
            for num, of_ranks in received.items()
        },
        "references_a_rank": {
            num: {role: round(of_rank.num_references) for role, of_rank in of_ranks.items()}
            for num, of_ranks in received.items()
        },
    }


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What a step costs.

    Attributes:
        of_group: The driver: each of the step's groups has its share.
        received: By role, a rank of it, in the mean over its ranks.
    """

    of_group: Cost
    received: Mapping[str, Received]


def cost_of_a_step(num_gpus: int, *, steps: int) -> StepCost:
    """The driver's in the median over steps but for the first, the ranks' of the last one."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder), num_gpus, steps)
        costs = asyncio.run(_run(config))[1:]
    return StepCost(
        of_group=Cost(
            seconds=median(cost.of_group.seconds for cost in costs) / config.prompts_per_step,
            num_bytes=median(cost.of_group.num_bytes for cost in costs) / config.prompts_per_step,
        ),
        received=costs[-1].received,
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


async def _run(config: GrpoConfig) -> list[StepCost]:
    """What each step costs, all of its groups together."""
    put, ray.put = ray.put, Answer.laid_down
    costs: list[StepCost] = []
    try:
        handles = handles_of(config)
        clocks, before = Clocks(own="driver"), SPENT.so_far()
        received = _received(handles)

        async def usage() -> Any:
            nonlocal before, received
            used = await usage_of(list(handles.values()), clocks, timeout_s=60.0)
            now = SPENT.so_far()
            cost = Cost(
                seconds=now.seconds - before.seconds, num_bytes=now.num_bytes - before.num_bytes
            )
            with SPENT.elsewhere():
                until_now = _received(handles)
                of_step = {role: got.since(received[role]) for role, got in until_now.items()}
            costs.append(StepCost(of_group=cost, received=of_step))
            before, received = now, until_now
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


def _received(handles: Mapping[str, RoleHandle[Any]]) -> dict[str, Received]:
    """What a rank of each role that rows come to was given so far, in the mean."""
    return {
        role: Received(
            num_bytes=fmean(actor.received.num_bytes for actor in handles[role].actors),
            num_references=fmean(actor.received.num_references for actor in handles[role].actors),
        )
        for role in RECEIVERS
    }


if __name__ == "__main__":
    main()
