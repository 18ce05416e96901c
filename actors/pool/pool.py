"""The resident pool: the one place that starts and stops a role's actors.

A pool outlives the jobs that run on it. A job asks for its roles; those that are there in the same
shape are handed over as they are, models and all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import ray

from actors.cluster.role_handle import ComputingActor, RoleHandle
from actors.cluster.role_spec import RoleActor, RoleSpec, clock
from actors.cluster.turns import Turns
from actors.pool import placement, processes
from actors.pool.clocks import Clocks
from actors.pool.models import ResidentModels
from actors.pool.record import PoolRecord
from actors.pool.restart import Restarts
from actors.pool.state import PoolState
from actors.pool.usage import usage_of
from rlhf_ray.config.fault_tolerance import FailureConfig, TimeoutConfig
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.errors import ActorDied, RlhfRayError
from rlhf_ray.metrics.usage import Used
from rlhf_ray.planning.cores import CoreShares, share_cores

logger = logging.getLogger(__name__)

# An idle actor answers at once; one that still does what a dead job asked of it may take a while.
ANSWER_S = 60.0
# Threads of actors that are being told another number.
UNKNOWN = 0


class Pool(ResidentModels):
    """Named actors on placement groups, kept until `close`.

    Attributes:
        gpu_turns: Of the roles that live on the same GPUs, by the role whose GPUs they are.
        core_turns: Of the roles that compute on a node's CPU, by the node.
        shares: Of the nodes' cores, in the job that runs.
        clocks: Of the machines that its actors are on.
        restarts: Of roles whose actors died.
    """

    def __init__(
        self,
        name: str,
        timeouts: TimeoutConfig,
        *,
        failures: FailureConfig | None = None,
        record: PoolRecord | None = None,
    ) -> None:
        """A pool on the cluster that this process is connected to; `name` begins its actors' names.

        The actors of a standing pool, which has a `record`, outlive this process.
        """
        super().__init__(timeouts, record)
        self.name = name
        self.restarts = Restarts((failures or FailureConfig()).actor, self.restart)
        self.gpu_turns: dict[str, Turns] = {}
        self.core_turns: dict[str, Turns] = {}
        self.shares = CoreShares()
        self.clocks = Clocks(own=clock())

    def place(self, roles: Mapping[str, GroupConfig]) -> None:
        """Reserve the GPUs of every role that is not placed yet.

        Raises:
            ConfigError: The cluster is too small, or a role is placed in another shape.
            DeadlineError: It is large enough but busy.
        """
        for _ in placement.place(
            roles,
            self.state,
            prefix=self.name if self.record is None else self.record.group_prefix,
            timeout_s=self.timeouts.place_s,
            outlives_job=self.record is not None,
        ):
            self._remember()  # what outlives the job and no record names would be lost

    def share_cores(self, specs: Mapping[str, RoleSpec]) -> None:
        """Divide the cores of all nodes between the placed roles, of which these work in a job.

        `start` of each of them goes by it.
        """
        groups = self.state.groups
        self.shares = share_cores(
            groups,
            {role: [place.node_id for place in self.state.places_of(role)] for role in groups},
            placement.cores(),
            working=specs,
            runs_ahead=any(spec.works_beside for spec in specs.values()),
        )
        self.core_turns = {
            node: Turns(number, on="the cores of its node")
            for node, number in self.shares.lent.items()
        }

    async def start(self, role: str, spec: RoleSpec) -> RoleHandle[Any]:
        """A role's actors, started unless they run; those of another specification are replaced.

        They compute in turn with the other roles that are placed on their GPUs, or on the CPUs of
        their nodes. A role that is not placed is a single actor without GPUs.

        Raises:
            RunError: One died or missed its deadline; none is left.
        """
        handle = self.state.roles.get(role)
        if handle is None:
            handle = RoleHandle(role)
        if not self._is_ready(role, spec, handle):
            with self.restarts.budget.starting(role):
                await self._make_ready(role, spec, handle)
        host = "" if spec.reserves_memory else self.state.shared_host(role)
        handle.gpu_turns = self.gpu_turns.setdefault(host, Turns()) if host else None
        taken = self.shares.taken.get(role, {})
        turns = [(self.core_turns[node], number) for node, number in taken.items()]
        handle.core_turns = [] if spec.runs_user_code else turns
        return handle

    def _runs(self, role: str, spec: RoleSpec, handle: RoleHandle[Any]) -> bool:
        return role in self.state.roles and handle.spec == spec

    def _is_ready(self, role: str, spec: RoleSpec, handle: RoleHandle[Any]) -> bool:
        """Whether it runs, and computes with as many threads as this job leaves it."""
        has_threads = role not in self.shares.threads or handle.threads == self._threads(role)
        return has_threads and self._runs(role, spec, handle)

    async def _make_ready(self, role: str, spec: RoleSpec, handle: RoleHandle[Any]) -> None:
        """Start it or tell it its threads; where it dies meanwhile, it is started anew."""
        while not self._is_ready(role, spec, handle):
            try:
                if self._runs(role, spec, handle):
                    await self._use_threads(handle, self._threads(role))
                else:
                    await self._start(role, spec, handle)
            except ActorDied as died:
                if died.role != role:
                    raise
                if role in self.state.roles:
                    await self.end(role)
                await self.restarts.allow(died)
                await self._names_are_free(handle.names)

    async def _use_threads(self, handle: RoleHandle[Any], number: int) -> None:
        """Have a role's actors compute with so many, and know it in the next job as well.

        Should this process end amid it, the next one does not take either number for theirs.
        """
        handle.threads = UNKNOWN
        self._remember()
        await handle.call(ComputingActor.use_threads, timeout_s=self.timeouts.call_s)(number)
        handle.threads = number
        self._remember()

    def _threads(self, role: str) -> int:
        """Of each of a role's actors."""
        group = self.state.groups.get(role)
        reserved = 1 if group is None else max(1, int(group.reserved_cpus))
        return self.shares.threads.get(role, reserved)

    async def _start(self, role: str, spec: RoleSpec, handle: RoleHandle[Any]) -> None:
        if role in self.state.roles:
            await self.end(role)
            await self._names_are_free(handle.names)
        if spec.reserves_memory:  # it fails where others have it
            await self._offload_beside(role)
        handle.threads = self._threads(role)
        handle.detach()
        handle.replace(self._processes(role, spec, handle.threads), spec=spec)
        self.state.roles[role] = handle
        try:
            await self._join(handle, range(len(handle)))
        except BaseException:  # a cancellation as well: it would look as if it had joined
            await self.end(role)  # so that the next job can start it anew
            raise
        self._remember()

    def _processes(
        self, role: str, spec: RoleSpec, threads: int, only: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """A role's actors in their places, by their names: all, or some."""
        return processes.start(
            f"{self.name}/{role}",
            spec,
            self.state.groups.get(role),
            self.state.places_of(role) if role in self.state.groups else [],
            threads=threads,
            timeouts=self.timeouts,
            lifetime=self._lifetime,
            only=only,
        )

    @property
    def _lifetime(self) -> Mapping[str, str]:
        """Ray's options of what outlives this process, if its actors do."""
        if self.record is None:
            return {}
        return {"lifetime": "detached", "namespace": self.record.namespace}

    async def _names_are_free(self, names: Sequence[str]) -> None:
        namespace = self._lifetime.get("namespace")
        await processes.names_are_free(names, namespace, timeout_s=self.timeouts.place_s)

    async def _join(self, handle: RoleHandle[Any], new: Sequence[int]) -> None:
        group = self.state.groups.get(handle.name)
        on_gpu = group is not None and group.gpus_per_rank > 0
        await handle.spec.join(handle, new=new, on_gpu=on_gpu, timeouts=self.timeouts)

    async def restart(self, role: str, ranks: Sequence[int] | None = None) -> None:
        """New actors in the places of some of a role.

        Without `ranks`: of its dead one, and of those that are of no use without it.

        They have the names of the old ones, which are killed, and host what these were asked to
        host. What a job has made of that since is lost, and what they kept in memory for others.
        The role's handle asks them once they are ready.

        Raises:
            ActorDied: One of the new ones has died.
            RlhfRayError: They cannot be started.
        """
        handle = self.state.roles[role]
        spec: RoleSpec = handle.spec
        broken = await spec.broken(handle) if ranks is None else ranks
        if not broken:  # one that was killed may answer for a moment; who met it asks again
            return
        names = [handle.names[index] for index in broken]
        self._lose(role)
        for index in broken:
            ray.kill(handle.actors[index])
        await self._names_are_free(names)
        if spec.reserves_memory:
            await self._offload_beside(role)
        threads = handle.threads or self._threads(role)  # unknown where they died as they were told
        new = handle.successor(self._processes(role, spec, threads, only=broken))
        try:
            # Ray gives a place away once the process that had it is gone.
            there = [new.start(RoleActor.health, rank)() for rank in broken]
            place_s = self.timeouts.place_s
            await new.answers(there, "health", timeout_s=place_s, ranks=broken)
            self._follow(role)
            await self._join(new, broken)
            if loaded := self.loaded.get(role):
                await self._load(new, loaded, only=broken)
        except BaseException:
            for index in broken:
                ray.kill(new.actors[index])
            raise
        handle.give_way_to(new, broken)
        self._remember()

    def _follow(self, role: str) -> None:
        """Know where the places of a role are now: Ray gives those of a lost node to another."""
        if role not in self.state.groups:
            return
        host = self.state.groups[role].share or role
        before = self.state.places[host]
        self.state.places[host] = placement.moved(before)
        for old, new in zip(before, self.state.places[host], strict=True):
            if old.node_id != new.node_id:
                logger.warning(
                    "places of %s have moved from %s to %s", host, old.address, new.address
                )
                self.files = self.files.moved(old.node_id, new.node_id, new.address)

    async def make_room(self, roles: Collection[str]) -> None:
        """Have what a job does not use leave the GPUs of the roles that it uses.

        So do models of jobs before in the job's own roles, where these share GPUs: each would be
        released when its role loads another one, and until then lie beside those that load first.
        Roles that cannot leave end. Models are released; results that later jobs start from stay in
        memory.
        """
        state = self.state
        for handle in state.roles.values():
            handle.detach()
        idle = state.idle_beside(roles)
        for role, handle in list(state.roles.items()):
            if handle.hosted and (role in idle or (role in roles and state.shared_host(role))):
                await self.unload(role)
            call_s = self.timeouts.call_s
            if role in idle and not await handle.spec.leave_gpus(handle, timeout_s=call_s):
                await self.end(role)

    async def usage(self, roles: Iterable[str]) -> Used:
        """What some roles needed and did since the last time."""
        handles = [self.state.roles[role] for role in roles if role in self.state.roles]
        return await usage_of(handles, self.clocks, timeout_s=self.timeouts.call_s)

    async def heal(self) -> None:
        """End the roles that cannot serve the next job; they are started anew when asked for.

        Of the others, what the last job left running is dropped.
        """
        for role, handle in list(self.state.roles.items()):
            handle.detach()  # also of those that the last job went on without
            try:
                await handle.call(RoleActor.process_id, timeout_s=ANSWER_S)()
                await handle.spec.check(handle, timeout_s=ANSWER_S)
            except RlhfRayError as fault:
                logger.warning("%s; %s is started anew", fault, role)
                await self.end(role)

    async def end(self, role: str) -> None:
        """End a role's actors, and with them what they hold; its places stay reserved.

        What is under way to start some of them again ends first: it would come in place of others.
        """
        self.state.roles[role].detach()
        await self.restarts.end(role)
        await processes.end(self.state.roles.pop(role))
        self._lose(role)
        self.loaded.pop(role, None)
        self._remember()

    async def close(self) -> None:
        """End every actor and give its resources back."""
        for handle in self.state.roles.values():
            handle.detach()
        await self.restarts.close()
        await asyncio.gather(*map(processes.end, self.state.roles.values()))
        for places in self.state.places.values():
            placement.release(places)
        self.state = PoolState()
