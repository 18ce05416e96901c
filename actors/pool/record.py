"""The record of a standing pool: a small detached actor that remembers it between jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray._raylet import PlacementGroupID
from ray.exceptions import ActorAlreadyExistsError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)

from actors.cluster.deadline import get
from actors.pool.state import PoolState
from rlhf_ray.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT_S = 30.0
RECORD = "record"


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A job that has the pool.

    Attributes:
        job_id: Ray's, of the driver.
        name: What its user calls it: its run folder.
        since_s: Since the epoch.
    """

    job_id: str
    name: str
    since_s: float


class Keeper:
    """The actor itself: a state and a lease, which a job has until its driver is gone."""

    def __init__(self, creator: Holder | None = None) -> None:
        """An empty pool; `creator` has the lease, or nobody."""
        self._state, self._holder = PoolState(), creator

    def read(self) -> PoolState:
        """The state that was written last."""
        return self._state

    def write(self, state: PoolState) -> None:
        """Remember."""
        self._state = state

    def acquire(self, wanted: Holder, running_jobs: Collection[str]) -> Holder:
        """Who has the lease now: `wanted`, or the other job that has it, if its driver is alive."""
        self._holder = self.holder(running_jobs) or wanted
        return self._holder

    def release(self, job_id: str) -> None:
        """Give the lease back; nothing where another job has it."""
        if self._holder is not None and self._holder.job_id == job_id:
            self._holder = None

    def holder(self, running_jobs: Collection[str]) -> Holder | None:
        """Who has the lease, if that job is still alive."""
        holder = self._holder
        return holder if holder is not None and holder.job_id in running_jobs else None


def namespace_of(pool: str) -> str:
    """Ray's namespace of everything that belongs to a standing pool."""
    return f"rlhf-ray/{pool}"


class PoolInUseError(ConfigError):
    """A job has the pool."""


class PoolRecord:
    """The record as a driver sees it.

    Attributes:
        state: As it was when the record was found; whoever holds the lease changes it.
    """

    def __init__(self, pool: str, keeper: Any) -> None:
        """Read the state."""
        self.pool, self.namespace, self._keeper = pool, namespace_of(pool), keeper
        self.state = self._call(Keeper.read)()

    @property
    def group_prefix(self) -> str:
        """What its placement groups' names begin with, and no other job's."""
        return f"standing/{self.pool}"

    @classmethod
    def create(cls, pool: str, creator: str) -> PoolRecord:
        """A record of an empty pool, which outlives this process; `creator` has it as a holder.

        What a pool of the name has left whose record died is ended: nobody else would find it.

        Raises:
            ConfigError: The cluster has a pool of that name.
        """
        keeper = ray.remote(num_cpus=0)(Keeper)
        options = {"name": RECORD, "namespace": namespace_of(pool), "lifetime": "detached"}
        try:
            actor = keeper.options(**options).remote(_own_holder(creator))
        except ActorAlreadyExistsError as error:
            raise ConfigError(f"the cluster has a pool {pool!r}: take another --name") from error
        record = cls(pool, actor)
        end_orphans(record)
        return record

    @classmethod
    def find(cls, pool: str) -> PoolRecord | None:
        """The pool's record on the cluster that this process is connected to, if it is there."""
        try:
            keeper = ray.get_actor(RECORD, namespace=namespace_of(pool))
        except ValueError:
            return None
        return cls(pool, keeper)

    def write(self, state: PoolState) -> None:
        """Remember."""
        self._call(Keeper.write)(state)

    def acquire(self, name: str) -> None:
        """Take the lease for this driver, and read the state that the last one left.

        Raises:
            ConfigError: A job that runs has it; says which.
        """
        wanted = _own_holder(name)
        holder = self._call(Keeper.acquire)(wanted, running_jobs())
        if holder != wanted:
            minutes = (time.time() - holder.since_s) / 60
            raise ConfigError(
                f"pool {self.pool} is in use by {holder.name} (Ray job {holder.job_id}) for "
                f"{minutes:.0f} min; one job at a time"
            )
        self.state = self._call(Keeper.read)()

    def release(self) -> None:
        """Give the lease back."""
        self._call(Keeper.release)(_own_job())

    def holder(self) -> Holder | None:
        """The job that uses the pool."""
        return self._call(Keeper.holder)(running_jobs())

    @property
    def is_ours(self) -> bool:
        """Whether this driver has the lease."""
        holder = self.holder()
        return holder is not None and holder.job_id == _own_job()

    def actor_infos(self, role: str) -> list[dict[str, Any]]:
        """What the cluster's own table says of a role's actors, whether they answer or not."""
        from ray._private.state import actors

        return [actors(actor._actor_id.hex()) for actor in self.state.roles[role].actors]

    def end(self) -> None:
        """End the record."""
        ray.kill(self._keeper)

    def _call(self, method: Callable[Concatenate[Keeper, P], T]) -> Callable[P, T]:
        def ask(*arguments: P.args, **keywords: P.kwargs) -> T:
            [value] = get(
                [getattr(self._keeper, method.__name__).remote(*arguments, **keywords)],
                timeout_s=TIMEOUT_S,
                actors=[f"{self.namespace}/{RECORD}"],
                operation=method.__name__,
            )
            answer: T = value
            return answer

        return ask


def end_orphans(record: PoolRecord) -> None:
    """End actors and placement groups of the pool that it does not know.

    A job died before it could say so.
    """
    known = {name for role in record.state.roles.values() for name in role.names} | {RECORD}
    for entry in ray.util.list_named_actors(all_namespaces=True):
        if entry["namespace"] == record.namespace and entry["name"] not in known:
            with suppress(ValueError):  # it has ended meanwhile
                ray.kill(ray.get_actor(entry["name"], namespace=record.namespace))
    places = [place for of_role in record.state.places.values() for place in of_role]
    release_groups(record, keep={place.group.id.hex() for place in places})


def release_groups(record: PoolRecord, keep: Collection[str] = ()) -> None:
    """Remove the pool's placement groups but those with these ids; also what it does not know."""
    for group_id, group in placement_group_table().items():
        is_own = group["name"].startswith(f"{record.group_prefix}:")
        if is_own and group_id not in keep and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group_id)))


def running_jobs() -> list[str]:
    """Ray's ids of the drivers that are alive, from the cluster's own table."""
    from ray._private.state import jobs  # the public list asks the dashboard, which may not run

    return [job["JobID"] for job in jobs() if not job["IsDead"]]


def _own_holder(name: str) -> Holder:
    return Holder(job_id=_own_job(), name=name, since_s=time.time())


def _own_job() -> str:
    return str(ray.get_runtime_context().get_job_id())
