"""The resident pool: the one place that starts and stops a role's actors.

A pool outlives the jobs that run on it. A job asks for its roles; those that are there in the same
shape are handed over as they are, models and all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.deadline import get, within
from actors.placement import Slot, check_resources, plan_groups, release, reserve
from rlhf_ray.config.base import GroupConfig, TimeoutConfig
from rlhf_ray.errors import ConfigError, RlhfRayError

logger = logging.getLogger(__name__)


class ActorSet:
    """Some actors of one role, and calls to all of them with a deadline."""

    def __init__(self, role: str, names: Sequence[str], actors: Sequence[Any]) -> None:
        """Name each actor, for errors."""
        self.role, self.names, self.actors = role, list(names), list(actors)

    async def call(
        self, method: str, *arguments: Any, timeout_s: float, **keywords: Any
    ) -> list[Any]:
        """Call the same method on every actor and wait for all."""
        refs = [getattr(actor, method).remote(*arguments, **keywords) for actor in self.actors]
        return await within(
            refs, timeout_s=timeout_s, actors=self.names, operation=f"{self.role}.{method}"
        )

    async def call_one(self, index: int, method: str, *arguments: Any, timeout_s: float) -> Any:
        """Call a method on one actor."""
        ref = getattr(self.actors[index], method).remote(*arguments)
        [value] = await within(
            [ref],
            timeout_s=timeout_s,
            actors=[self.names[index]],
            operation=f"{self.role}.{method}",
        )
        return value

    def __len__(self) -> int:
        """How many actors."""
        return len(self.actors)


class Pool:
    """Named actors on placement groups, kept until `close`."""

    def __init__(self, name: str, timeouts: TimeoutConfig) -> None:
        """An empty pool on the cluster that this process is connected to."""
        self.name, self.timeouts = name, timeouts
        self._groups: dict[str, GroupConfig] = {}
        self._slots: dict[str, list[Slot]] = {}
        self._sets: dict[str, ActorSet] = {}
        self._specs: dict[str, Any] = {}

    def place(self, roles: Mapping[str, GroupConfig]) -> None:
        """Reserve the GPUs of every role that is not placed yet.

        Raises:
            ConfigError: The cluster is too small, or a role is placed in another shape.
            DeadlineError: It is large enough but busy.
        """
        for role, group in roles.items():
            if role in self._groups and self._groups[role] != group:
                raise ConfigError(
                    f"placement.{role} is {group}, but the pool holds it as {self._groups[role]}"
                )
        plans = [plan for plan in plan_groups(roles) if plan.host not in self._slots]
        check_resources(plans, ray.cluster_resources())
        for plan in plans:
            self._slots[plan.host] = reserve(
                plan, name=f"{self.name}:{plan.host}", timeout_s=self.timeouts.place_s
            )
        self._groups.update(roles)

    async def rank_group(self, role: str, actor_class: Any) -> ActorSet:
        """The ranks of a role, in one process group; started at the first call."""
        if role in self._sets:
            return self._sets[role]
        actors = self._sets[role] = self._start(role, actor_class, self.timeouts.call_s)
        try:
            await self._join(actors)
        except RlhfRayError:
            await self._end(self._sets.pop(role))
            raise
        return actors

    async def _join(self, actors: ActorSet) -> None:
        start_s = self.timeouts.start_s
        host, port = await actors.call_one(0, "open_store", start_s, timeout_s=start_s)
        refs = [
            actor.join.remote(rank, len(actors), host, port, self.timeouts.call_s)
            for rank, actor in enumerate(actors.actors)
        ]
        await within(refs, timeout_s=start_s, actors=actors.names, operation=f"{actors.role}.join")

    async def replica_set(self, role: str, actor_class: Any, spec: Any) -> ActorSet:
        """Independent engines of a role; those that run with another specification are replaced."""
        if role in self._sets:
            if self._specs[role] == spec:
                return self._sets[role]
            await self._end(self._sets.pop(role))
        actors = self._sets[role] = self._start(role, actor_class, spec)
        self._specs[role] = spec
        try:
            await actors.call("start", timeout_s=self.timeouts.start_s)
        except RlhfRayError:
            await self._end(self._sets.pop(role))
            raise
        return actors

    async def helper(self, role: str, actor_class: Any) -> ActorSet:
        """One actor without GPUs or a group of its own."""
        if role not in self._sets:
            name = f"{self.name}/{role}"
            actor = actor_class.options(name=name, num_cpus=0).remote(
                name, _environment(1.0, []), self.timeouts.call_s
            )
            self._sets[role] = ActorSet(role, [name], [actor])
        return self._sets[role]

    def _start(self, role: str, actor_class: Any, argument: Any) -> ActorSet:
        group = self._groups[role]
        slots, gpus = self._seats(role)
        names = [f"{self.name}/{role}/{index}" for index in range(group.ranks)]
        actors = []
        for index, name in enumerate(names):
            slot = slots[index]
            actor = actor_class.options(
                name=name,
                num_cpus=0 if group.share else group.cpus_per_rank,
                num_gpus=0 if group.share else group.gpus_per_rank,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=slot.group,
                    placement_group_bundle_index=slot.bundle,
                ),
            ).remote(name, _environment(group.cpus_per_rank, gpus[index]), argument)
            actors.append(actor)
        return ActorSet(role, names, actors)

    def _seats(self, role: str) -> tuple[list[Slot], Sequence[Sequence[str] | None]]:
        """Slot and GPUs of each rank; None where Ray hands them out, as it does to hosts."""
        group = self._groups[role]
        if not group.share:
            return self._slots[role], [None if group.gpus_per_rank else []] * group.ranks
        host, slots = self._groups[group.share], self._slots[group.share]
        if not group.gpus_per_rank:
            return [slots[i % len(slots)] for i in range(group.ranks)], [[]] * group.ranks
        hosts = self._sets.get(group.share)
        if hosts is None:
            raise RlhfRayError(f"{role} shares the GPUs of {group.share}, which must start first")
        refs = [actor.gpu_ids.remote() for actor in hosts.actors]
        ids = get(
            refs,
            timeout_s=self.timeouts.start_s,
            actors=hosts.names,
            operation=f"{group.share}.gpu_ids",
        )
        flat = [(slot, gpu) for slot, gpus in zip(slots, ids, strict=True) for gpu in gpus]
        seats, gpus_of = [], []
        for index in range(group.ranks):
            mine = flat[index * group.gpus_per_rank : (index + 1) * group.gpus_per_rank]
            if len({slot.node_id for slot, _ in mine}) > 1:
                raise ConfigError(
                    f"{role} rank {index} needs {group.gpus_per_rank} GPUs of one node, but those "
                    f"of {group.share} ({host.ranks} x {host.gpus_per_rank}) lie on several"
                )
            seats.append(mine[0][0])
            gpus_of.append([gpu for _, gpu in mine])
        return seats, gpus_of

    def process_ids(self) -> dict[str, int]:
        """Process of every actor, by its name."""
        found: dict[str, int] = {}
        for actors in self._sets.values():
            refs = [actor.process_id.remote() for actor in actors.actors]
            values = get(refs, timeout_s=60.0, actors=actors.names, operation="process_id")
            found.update(zip(actors.names, values, strict=True))
        return found

    async def close(self) -> None:
        """End every actor and give its resources back."""
        await asyncio.gather(*(self._end(actors) for actors in self._sets.values()))
        for slots in self._slots.values():
            release(slots)
        self._sets.clear()
        self._slots.clear()
        self._groups.clear()

    @staticmethod
    async def _end(actors: ActorSet) -> None:
        try:
            await actors.call("stop", timeout_s=30.0)
        except RlhfRayError as error:
            logger.warning("%s; it is killed", error)
        for actor in actors.actors:
            ray.kill(actor)


def _environment(cpus: float, gpus: Sequence[str] | None) -> dict[str, str]:
    """What must be set before torch is imported: threads, and the GPUs where Ray does not."""
    threads = str(max(1, int(cpus)))
    environment = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    if gpus is not None:  # Ray leaves all GPUs visible to an actor that asked for none
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return environment
