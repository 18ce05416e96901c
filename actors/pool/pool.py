"""The resident pool: the one place that starts and stops a role's actors.

A pool outlives the jobs that run on it. A job asks for its roles; those that are there in the same
shape are handed over as they are, models and all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.cluster.actor_set import ActorSet
from actors.cluster.deadline import get
from actors.cluster.exports import export
from actors.cluster.nodes import snapshot
from actors.cluster.run_files import RunFiles
from actors.cluster.turns import Turns
from actors.pool.placement import Slot, release, reserve, strategy_of
from actors.pool.record import PoolRecord
from actors.pool.seating import environment, seats_of, shared_host, slots_of
from actors.pool.state import Hosted, PoolState
from actors.pool.usage import usage_of
from actors.weights.held_model import HeldModel
from rlhf_ray.config.base import GroupConfig, TimeoutConfig
from rlhf_ray.config.run import JobConfig
from rlhf_ray.errors import ConfigError, RlhfRayError, RunError
from rlhf_ray.planning.groups import check_resources, plan_groups
from rlhf_ray.roles import Metrics

logger = logging.getLogger(__name__)

# An idle actor answers at once; one that still does what a dead job asked of it may take a while.
ANSWER_S = 60.0
# Well within what a stopped job is given to end in: what is still busy then is killed.
STOP_S = 15.0


class Pool:
    """Named actors on placement groups, kept until `close`.

    Attributes:
        files: How the job's files come to nodes that do not see this machine's folders.
        gpu_turns: Of the roles that live on the same GPUs, by the role whose GPUs they are.
    """

    def __init__(
        self, name: str, timeouts: TimeoutConfig, *, record: PoolRecord | None = None
    ) -> None:
        """A pool on the cluster that this process is connected to.

        Args:
            name: Prefix of its actors' names.
            timeouts: Of placing and starting.
            record: Of a standing pool, whose actors outlive this process.
        """
        self.name, self.timeouts, self.record = name, timeouts, record
        self.state = PoolState() if record is None else record.state
        self.wanted: frozenset[str] = frozenset()
        self.gpu_turns: dict[str, Turns] = {}
        self.files = RunFiles()

    def place(self, roles: Mapping[str, GroupConfig]) -> None:
        """Reserve the GPUs of every role that is not placed yet.

        Raises:
            ConfigError: The cluster is too small, or a role is placed in another shape.
            DeadlineError: It is large enough but busy.
        """
        groups, slots = self.state.groups, self.state.slots
        for role, group in roles.items():
            if role in groups and groups[role] != group:
                raise ConfigError(
                    f"placement.{role} is {group}, but the pool holds it as {groups[role]}"
                )
        plans = [plan for plan in plan_groups({**groups, **roles}) if plan.host not in slots]
        check_resources(plans, snapshot())
        prefix = self.name if self.record is None else self.record.group_prefix
        for plan in plans:
            slots[plan.host] = reserve(
                plan,
                name=f"{prefix}:{plan.host}",
                timeout_s=self.timeouts.place_s,
                outlives_job=self.record is not None,
            )
            members = {plan.host, *plan.guests} & roles.keys()
            groups.update({role: roles[role] for role in members})
            self._remember()  # what outlives the job and no record names would be lost
        groups.update(roles)
        self._remember()

    def slots_of(self, role: str) -> list[Slot]:
        """Where each rank of a placed role goes."""
        return slots_of(role, self.state)

    def files_of(self, role: str) -> RunFiles:
        """The files of a role's ranks."""
        return self.files.of_ranks([slot.node_id for slot in self.slots_of(role)])

    async def rank_group(self, role: str, actor_class: Any) -> ActorSet:
        """The ranks of a role, in one process group; started at the first call.

        They compute in turn with the other roles that are placed on their GPUs.
        """
        if role not in self.state.sets:
            actors = self._start(role, actor_class, self.timeouts.call_s)
            await self._finish_start(actors, self._join(actors))
        actors = self.state.sets[role]
        host = shared_host(role, self.state.groups)
        actors.gpu_turns = self.gpu_turns.setdefault(host, Turns()) if host else None
        return actors

    async def _join(self, actors: ActorSet) -> None:
        start_s, call_s = self.timeouts.start_s, self.timeouts.call_s
        on_gpu = self.state.groups[actors.role].gpus_per_rank > 0
        host, port = await actors.call_one(0, "open_store", start_s, timeout_s=start_s)
        refs = [
            actor.join.remote(rank, len(actors), host, port, call_s, on_gpu)
            for rank, actor in enumerate(actors.actors)
        ]
        await actors.answers(refs, "join", timeout_s=start_s)

    async def replica_set(self, role: str, actor_class: Any, spec: Any) -> ActorSet:
        """Independent engines of a role; those that run with another specification are replaced."""
        if role in self.state.sets:
            if self.state.specs[role] == spec:
                return self.state.sets[role]
            await self.end(role)
        await self._offload_beside(role)
        actors = self._start(role, actor_class, spec)
        self.state.specs[role] = spec
        await self._finish_start(actors, actors.call("start", timeout_s=self.timeouts.start_s))
        return actors

    async def _offload_beside(self, role: str) -> None:
        """Have models leave the GPUs of a role for the host; whatever needs them brings them back.

        An engine takes its share of a GPU when it starts, and fails where that is not free.
        """
        host = shared_host(role, self.state.groups)
        for other in self.state.hosted:
            if host and shared_host(other, self.state.groups) == host:
                call_s = self.timeouts.call_s
                await self.state.sets[other].call("offload", timeout_s=call_s)

    async def _finish_start(self, actors: ActorSet, slow_part: Awaitable[Any]) -> None:
        """A role that did not come up is ended, so that the next job can start it anew."""
        self.state.sets[actors.role] = actors
        try:
            await slow_part
        except RlhfRayError:
            await self.end(actors.role)
            raise
        self._remember()

    async def helper(self, role: str, actor_class: Any) -> ActorSet:
        """One actor without GPUs or a group of its own."""
        if role not in self.state.sets:
            name = f"{self.name}/{role}"
            actor = actor_class.options(name=name, num_cpus=0, **self._lifetime()).remote(
                name, environment(1.0, []), self.timeouts.call_s
            )
            self.state.sets[role] = ActorSet(role, [name], [actor])
            self._remember()
        return self.state.sets[role]

    async def load(self, role: str, spec: Any, *, path: str, leaves: bool = False) -> None:
        """Have a role's ranks host what `spec` describes, in place of what they host.

        Args:
            role: A started rank group.
            spec: What it is made from.
            path: Of its model: where a job left that one in memory, it is taken from there.
            leaves: Whether it goes on to the host, to be brought back by what needs it: other
                roles' models are loaded there, or engines sample.

        Raises:
            ConfigError: The model cannot be loaded as configured.
        """
        held = [model for model in [self.state.models.get(path)] if model]
        actors = self.state.sets[role]
        self.state.hosted.pop(role, None)  # gone, also if the next one cannot be loaded
        start_s = self.timeouts.start_s
        async with actors.turn(timeout_s=start_s):
            await actors.call("load", spec, held, timeout_s=start_s)
            if leaves:
                await actors.call("offload", timeout_s=start_s)
        if path:
            self.state.hosted[role] = Hosted(path=path, since_s=time.time())
        self._remember()

    async def make_room(self, roles: Collection[str]) -> None:
        """Have what a job does not use leave the GPUs of the roles that it uses.

        So do models of jobs before in the job's own roles, where these share GPUs: each would be
        released when its role loads another one, and until then lie beside those that load first.
        Engines sleep, without their weights: a job with rollouts begins with a publication. Those
        that cannot, because none of their own job's roles needs their GPUs, end. Models are
        released; results that later jobs start from stay in memory.
        """
        on_gpus = {role: group for role, group in self.state.groups.items() if group.gpus_per_rank}
        busy = {on_gpus[role].host_of(role) for role in roles if role in on_gpus}
        idle = [
            role
            for role, group in on_gpus.items()
            if role not in roles and group.host_of(role) in busy
        ]
        for role in list(self.state.hosted):
            if role in idle or (role in roles and shared_host(role, self.state.groups)):
                await self.unload(role)
        if "rollout" not in idle or "rollout" not in self.state.sets:
            return
        if self.state.specs["rollout"].sleeps:
            call_s = self.timeouts.call_s
            await self.state.sets["rollout"].call("sleep", 2, call_s, timeout_s=call_s)
        else:
            await self.end("rollout")

    async def unload(self, role: str) -> None:
        """Have a role's ranks release what they host."""
        await self.state.sets[role].call("unload", timeout_s=self.timeouts.start_s)
        self.state.hosted.pop(role, None)
        self._remember()

    async def finish(self, config: JobConfig, role: str, tokenizer_path: str) -> None:
        """Write a job's result to `export` in its folder; keep it in memory for jobs to come.

        The folder always gets configuration and tokenizer, the weights as `checkpoint.export` says
        so. On a standing pool it stays in memory until the role's next job ends.

        Args:
            config: Of the job.
            role: That was trained.
            tokenizer_path: Where the run's tokenizer is.
        """
        folder = str(Path(config.run_dir) / "export")
        weights = config.checkpoint.export != "never"
        actors, files, call_s = self.state.sets[role], self.files_of(role), self.timeouts.call_s
        await export(actors, files, folder, tokenizer_path, weights=weights, timeout_s=call_s)
        if self.record is None and folder not in self.wanted:
            return
        old = [model.path for model in self.state.models.values() if model.role == role]
        await self._forget([path for path in old if path not in self.wanted])
        shares = await actors.call("keep", folder, timeout_s=call_s)
        refs = tuple(ref for share in shares for ref in share)
        self.state.models[folder] = HeldModel(path=folder, role=role, bucket_refs=refs)
        self.state.hosted[role] = Hosted(path=folder, since_s=time.time())
        self._remember()

    async def want(self, folders: Iterable[str]) -> None:
        """Keep results that are written to these folders in memory, and free all others."""
        self.wanted = frozenset(folders)
        await self._forget([path for path in self.state.models if path not in self.wanted])

    async def _forget(self, paths: Sequence[str]) -> None:
        for path in paths:
            owners = self.state.sets[self.state.models.pop(path).role]
            await owners.call("drop", path, timeout_s=self.timeouts.call_s)
        self._remember()

    def _remember(self) -> None:
        if self.record is not None:
            self.record.write(self.state)

    def _lifetime(self) -> dict[str, str]:
        if self.record is None:
            return {}
        return {"lifetime": "detached", "namespace": self.record.namespace}

    def _start(self, role: str, actor_class: Any, argument: Any) -> ActorSet:
        group = self.state.groups[role]
        seats = seats_of(role, self.state, timeout_s=self.timeouts.start_s)
        names = [f"{self.name}/{role}/{index}" for index in range(group.ranks)]
        actors = []
        for name, seat in zip(names, seats, strict=True):
            actor = actor_class.options(
                name=name,
                **self._lifetime(),
                num_cpus=0 if group.share else group.cpus_per_rank,
                num_gpus=0 if group.share else group.gpus_per_rank,
                scheduling_strategy=strategy_of(seat.slot),
            ).remote(name, environment(group.cpus_per_rank, seat.gpus), argument)
            actors.append(actor)
        return ActorSet(role, names, actors)

    def process_ids(self) -> dict[str, int]:
        """Process of every actor, by its name."""
        found: dict[str, int] = {}
        for actors in self.state.sets.values():
            refs = [actor.process_id.remote() for actor in actors.actors]
            values = get(refs, timeout_s=60.0, actors=actors.names, operation="process_id")
            found.update(zip(actors.names, values, strict=True))
        return found

    async def usage(self, roles: Iterable[str]) -> Metrics:
        """What some roles needed since the last time: `wait/*`, `memory/*` and `engine/*`."""
        sets = {role: self.state.sets[role] for role in roles}
        return await usage_of(sets, timeout_s=self.timeouts.call_s)

    async def heal(self) -> None:
        """End the roles that do not answer any more; they are started anew when asked for."""
        for role, actors in list(self.state.sets.items()):
            try:
                await actors.call("process_id", timeout_s=ANSWER_S)
                if role == "rollout":
                    await _check_engines(actors)
                    await actors.call("drop_requests", timeout_s=ANSWER_S)
            except RlhfRayError as error:
                logger.warning("%s; %s is started anew", error, role)
                await self.end(role)

    async def end(self, role: str) -> None:
        """End a role's actors, and with them what they hold; its place stays reserved."""
        await self._end(self.state.sets.pop(role))
        self.state.hosted.pop(role, None)
        for path in [path for path, model in self.state.models.items() if model.role == role]:
            del self.state.models[path]
        self._remember()

    async def close(self) -> None:
        """End every actor and give its resources back."""
        await asyncio.gather(*(self._end(actors) for actors in self.state.sets.values()))
        for slots in self.state.slots.values():
            release(slots)
        self.state = PoolState()

    @staticmethod
    async def _end(actors: ActorSet) -> None:
        try:
            await actors.call("stop", timeout_s=STOP_S)
        except RlhfRayError as error:
            logger.warning("%s; it is killed", error)
        for actor in actors.actors:
            ray.kill(actor)


async def _check_engines(actors: ActorSet) -> None:
    """An actor answers also for an engine that is dead or was left amid a publication.

    Raises:
        RunError: One is.
    """
    for said in await actors.call("health", timeout_s=ANSWER_S):
        if not said["alive"] or said["updating"]:
            raise RunError(f"{said['name']}: its engine is dead, or was left amid a publication")
