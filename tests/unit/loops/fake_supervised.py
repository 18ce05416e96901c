"""A role that learns from rows, and what completes them before."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fakes import COSTS

from rlhf_ray.packing import UpdatePlan
from rlhf_ray.roles.protocols import Supervised
from rlhf_ray.roles.reports import Evaluated, Hardware, Metrics


class FakeSupervised:
    """Keeps the batches it was given.

    `skipped` is how many steps in a row each update reports as skipped, then 0.
    """

    def __init__(self, skipped: Sequence[float] = (), fails_at: int = 0) -> None:
        self.skipped, self.fails_at = list(skipped), fails_at
        self.batches: list[list[str]] = []
        self.plans: list[UpdatePlan] = []
        self.calls: list[str] = []
        self.evaluated: list[list[str]] = []
        self.num_updates = 0

    async def hardware(self) -> Hardware:
        return Hardware(flops=COSTS, device_name="cpu", num_devices=1)

    async def update(self, rows: Sequence[Any], plan: UpdatePlan) -> Metrics:
        await asyncio.sleep(0)  # as a call to an actor, it leaves the loop time for others
        self.calls.append("update")
        self.num_updates += 1
        if self.num_updates == self.fails_at:
            raise OSError("power cut")
        self.batches.append([row.example_id for row in rows])
        self.plans.append(plan)
        return {
            "loss": 0.5,
            "rewards/margins": 1.5,
            "skipped_in_a_row": self.skipped.pop(0) if self.skipped else 0.0,
        }

    async def evaluate(self, rows: Sequence[Any]) -> Evaluated:
        self.calls.append("evaluate")
        self.evaluated.append([row.example_id for row in rows])
        return Evaluated(
            metrics={"loss": 2.0 - self.num_updates, "rewards/margins": 1.0},
            outcomes_B=[(0.0,)] * len(rows),
        )

    async def save(self, folder: str) -> None:
        self.calls.append("save")
        Path(folder).mkdir(parents=True)
        (Path(folder) / "weights").write_text(str(self.num_updates))

    async def restore(self, folder: str) -> None:
        self.calls.append("restore")
        self.num_updates = int((Path(folder) / "weights").read_text())


class Completing:
    """Completes batches; notes what the policy had done when it was asked."""

    def __init__(self, policy: FakeSupervised) -> None:
        self.policy = policy
        self.asked: list[tuple[int, list[str]]] = []

    async def __call__(self, rows: Sequence[Any]) -> Sequence[Any]:
        self.asked.append((self.policy.num_updates, [row.example_id for row in rows]))
        return rows


class SlowSupervised(FakeSupervised):
    """Whose update takes as long as the next batch does, where that is asked for meanwhile."""

    reference: Completing

    async def update(self, rows: Sequence[Any], plan: UpdatePlan) -> Metrics:
        num_asked = len(self.reference.asked)
        for _ in range(200):
            if num_asked == 5 or len(self.reference.asked) > num_asked:
                break
            await asyncio.sleep(0.005)
        return await super().update(rows, plan)


def _(fake: FakeSupervised) -> Supervised:
    return fake
