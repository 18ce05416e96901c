"""Resident pools without actors, and the record of one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ray.util.placement_group import PlacementGroup

from actors.cluster.run_files import RunFiles
from actors.pool.pool import Pool
from actors.pool.record import PoolRecord
from actors.pool.state import Place, PoolState
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.config.run import JobConfig
from rlhf_ray.metrics.usage import Used


class FakePlacementGroup(PlacementGroup):
    """By its id in hexadecimal."""

    def __init__(self, name: str) -> None:
        whole: Any = self
        self.id, self.name = whole, name

    def hex(self) -> str:
        return self.name

    def wait(self, timeout_seconds: float | int = 30) -> bool:
        return True


class RecordingPool(Pool):
    """Writes down what it is asked."""

    def __init__(self) -> None:
        super().__init__("pool", TimeoutConfig())
        self.asked: list[tuple[Any, ...]] = []

    def files_of(self, role: str) -> RunFiles:
        return RunFiles()

    async def make_room(self, roles: Collection[str]) -> None:
        self.asked.append(("make_room", *sorted(roles)))

    async def load(self, role: str, spec: Any, *, path: str, leaves: bool = False) -> list[Any]:
        self.asked.append(("load", role, path, leaves))
        return []

    async def unload(self, role: str) -> None:
        self.asked.append(("unload", role))

    async def finish(self, config: JobConfig, role: str, tokenizer_path: str) -> None:
        self.asked.append(("finish", role, tokenizer_path))

    async def usage(self, roles: Iterable[str]) -> Used:
        return Used(metrics={f"wait/{role}": 0.0 for role in roles})


class PlacedPool(Pool):
    """Every role with two ranks on the node of its address."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        super().__init__("pool", TimeoutConfig())
        self.addresses, self.is_placed = addresses, False

    def place(self, roles: Mapping[str, GroupConfig]) -> None:
        self.is_placed = True
        for role, address in self.addresses.items():
            group = FakePlacementGroup(role)
            self.state.groups[role] = GroupConfig()
            self.state.places[role] = [
                Place(group=group, bundle=n, node_id=address, address=address) for n in range(2)
            ]


class FakeRecord(PoolRecord):
    """Of a pool with one placed role and one actor."""

    def __init__(self) -> None:
        self.pool, self.namespace = "lab", "rlhf-ray/lab"
        place = Place(group=FakePlacementGroup("known"), bundle=0, node_id="n", address="10.0.0.1")
        self.state = PoolState(places={"policy": [place]})
