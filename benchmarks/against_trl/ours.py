"""A job of this project, whose steps wait for their turns: `python -m ... ours FILE DESCRIPTOR`.

It runs as `rlhf-ray JOB FILE` runs it, on a pool of its own. Between two turns its actors are
there and idle.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.against_trl.gate import Enough, Gate
from launch.job import open_pool, prepare, run_on
from launch.run.cluster import connected
from rlhf_ray.config.jobs import JOB_CONFIGS
from rlhf_ray.metrics.usage import Usage


def main(file: Path, descriptor: int) -> None:
    """Run the job that a file describes until no turn is left."""
    given = json.loads(file.read_text())
    config = JOB_CONFIGS[given["job"]].model_validate(given["config"])
    gate, every = Gate(descriptor), given["steps_a_turn"]
    prepared = prepare(config)
    job = replace(prepared.job, loop=in_turns(prepared.job.loop, gate, every))

    async def run() -> None:
        async with open_pool(config) as pool:
            await run_on(pool, replace(prepared, job=job))

    with suppress(Enough), connected(config, config.groups):
        asyncio.run(run())


def in_turns(make: Callable[..., Any], gate: Gate, every: int) -> Callable[..., Any]:
    """What puts a loop together whose steps end at the gate, each `every` of them."""

    def made(config: Any, data: Any, roles: Any, log: Any, usage: Usage) -> Any:
        steps = count()  # a loop asks for its usage before the first step and at the end of each

        async def at_gate() -> Any:
            used = await usage()
            step = next(steps)
            if step and step % every == 0:
                # What is prepared for the next step belongs to this turn, as to each one.
                if (ahead := getattr(loop, "ahead", None)) is not None:  # of rows alone
                    await asyncio.wait([ahead], timeout=config.timeouts.call_s)
                num_tokens = sum(_num_tokens(config, data, step, every))
                await asyncio.to_thread(gate.pass_turn, num_tokens=num_tokens)
            return used

        loop = make(config, data, roles, log, at_gate)
        return loop

    return made


def _num_tokens(config: Any, data: Any, step: int, every: int) -> Iterator[int]:
    """Of the rows of the last steps, where there are rows, which come in their order."""
    if rows := getattr(data, "rows", None):
        size = config.batch_size
        for number in range((step - every) * size, step * size):
            yield rows[number].num_tokens


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
