"""The models that a pool's roles hold: loaded, moved to the host, kept for jobs to come."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from actors.cluster.role_handle import Answer, Hosted, RoleHandle
from actors.cluster.role_spec import RoleActor
from actors.cluster.run_files import RunFiles, or_death
from actors.pool.record import PoolRecord
from actors.pool.state import PoolState
from actors.weights.held_model import HeldModel
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.config.run import JobConfig
from rlhf_ray.errors import RunError


class HostingActor(Protocol):
    """What the pool asks of the ranks of a role that hosts models."""

    def load(self, spec: Any, held: Sequence[HeldModel] = ()) -> Answer[Any]:
        """Host what `spec` describes, in place of what was hosted; `held` are in memory."""

    def unload(self) -> None:
        """Release what is hosted."""

    def offload(self) -> None:
        """Leave the GPU for the host; what needs the model there brings it back."""

    def keep(self, folder: str) -> list[Any]:
        """Leave this rank's share of the weights in the object store; references to it."""

    def drop(self, folder: str) -> None:
        """Free what `keep` put there."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a role was asked to host, as `ResidentModels.load` takes it."""

    spec: Any
    path: str
    leaves: bool


class ResidentModels:
    """What the started roles of a pool hold.

    Attributes:
        state: The pool's.
        timeouts: Of its calls.
        record: Of a standing pool, which remembers the state.
        wanted: Folders of results that jobs to come start from.
        files: How the job's files come to nodes that do not see this machine's folders.
        loaded: What each role was asked to host, for actors that come in the place of others.
        lost: Folders of results whose weights were in the memory of ranks that died.
    """

    def __init__(self, timeouts: TimeoutConfig, record: PoolRecord | None) -> None:
        """What a record remembers, or nothing."""
        self.timeouts, self.record = timeouts, record
        self.state = PoolState() if record is None else record.state
        self.wanted: frozenset[str] = frozenset()
        self.files = RunFiles()
        self.loaded: dict[str, Loaded] = {}
        self.lost: set[str] = set()

    def files_of(self, role: str) -> RunFiles:
        """The files of a role's ranks."""
        return self.files.of_ranks([place.node_id for place in self.state.places_of(role)])

    async def load(self, role: str, spec: Any, *, path: str, leaves: bool = False) -> list[Any]:
        """Have a role's actors host what `spec` describes, in place of what they host.

        Where a job left the model of this `path` in memory, it is taken from there. One that
        `leaves` goes on to the host, to be brought back by what needs it: other roles' models are
        loaded there, or engines sample.

        Returns:
            What each of them says of it.

        Raises:
            ConfigError: The model cannot be loaded as configured.
            RunError: It was in the memory of ranks that died, and nowhere else.
        """
        self.loaded.pop(role, None)
        loaded = Loaded(spec=spec, path=path, leaves=leaves)
        answers = await self._load(self.state.roles[role], loaded)
        self.loaded[role] = loaded
        self._remember()
        return answers

    async def load_again(self, role: str) -> None:
        """Have a role's actors host anew what they were asked to, whatever was made of it since."""
        await self._load(self.state.roles[role], self.loaded[role])
        self._remember()

    async def _load(
        self, ranks: RoleHandle[Any], loaded: Loaded, *, only: Sequence[int] | None = None
    ) -> list[Any]:
        """What all ranks say of it, or some, beside which the others work on."""
        held, start_s = await self._in_memory(loaded.path), self.timeouts.start_s
        asked = range(len(ranks)) if only is None else only
        ranks.hosted = None  # gone, also if the next one cannot be loaded
        async with ranks.turn(timeout_s=start_s):
            refs = [ranks.start(HostingActor.load, rank)(loaded.spec, held) for rank in asked]
            answers = await ranks.answers(refs, "load", timeout_s=start_s, ranks=asked)
            if loaded.leaves:
                await ranks.call(HostingActor.offload, timeout_s=start_s)()
        if loaded.path:
            ranks.hosted = Hosted(path=loaded.path, since_s=time.time())
        return answers

    async def _in_memory(self, path: str) -> list[HeldModel]:
        """The model of a path, if it is there; its owners are alive.

        Raises:
            ActorDied: They are not.
            RunError: They were, and no file has its weights.
        """
        held = self.state.models.get(path)
        if held is not None:
            owner = self.state.roles[held.role]
            await owner.call(RoleActor.health, timeout_s=self.timeouts.hang_s)()
            return [held]
        if path in self.lost and not any(Path(path).glob("*.safetensors")):
            raise RunError(
                f"the model {path} was kept in memory alone, and is lost with a rank that died: "
                "checkpoint.export: end writes it to the disk as well"
            )
        return []

    def _lose(self, role: str) -> None:
        """A role's actors are gone, and with them what they keep in memory."""
        for path in [path for path, model in self.state.models.items() if model.role == role]:
            del self.state.models[path]
            self.lost.add(path)

    async def unload(self, role: str) -> None:
        """Have a role's ranks release what they host."""
        ranks = self.state.roles[role]
        await ranks.call(HostingActor.unload, timeout_s=self.timeouts.start_s)()
        ranks.hosted = None
        self.loaded.pop(role, None)
        self._remember()

    async def _offload_beside(self, role: str) -> None:
        """Have models leave the GPUs of a role for the host; what needs them brings them back."""
        host = self.state.shared_host(role)
        for other, ranks in self.state.roles.items():
            if host and ranks.hosted and self.state.shared_host(other) == host:
                await ranks.call(HostingActor.offload, timeout_s=self.timeouts.call_s)()

    async def finish(self, config: JobConfig, role: str, tokenizer_path: str) -> None:
        """Write a job's result to `export` in its folder; keep it in memory for jobs to come.

        The folder always gets configuration and tokenizer, the weights as `checkpoint.export` says
        so. On a standing pool it stays in memory until the role's next job ends.
        """
        folder, weights = str(Path(config.run_dir) / "export"), config.checkpoint.export != "never"
        ranks, call_s = self.state.roles[role], self.timeouts.call_s
        write = self.files_of(role).export
        written = write(ranks, folder, tokenizer_path, weights=weights, timeout_s=call_s)
        await or_death(ranks, written, hang_s=self.timeouts.hang_s)
        if self.record is not None or folder in self.wanted:
            await self._keep(role, folder)

    async def want(self, folders: Iterable[str]) -> None:
        """Keep results that are written to these folders in memory, and free all others."""
        self.wanted = frozenset(folders)
        await self._forget([path for path in self.state.models if path not in self.wanted])

    async def _keep(self, role: str, folder: str) -> None:
        """Leave a result in memory for whoever loads `folder`, in place of what nobody wants."""
        ranks, models = self.state.roles[role], self.state.models
        old = [model.path for model in models.values() if model.role == role]
        await self._forget([path for path in old if path not in self.wanted])
        shares = await ranks.call(HostingActor.keep, timeout_s=self.timeouts.call_s)(folder)
        refs = tuple(ref for share in shares for ref in share)
        models[folder] = HeldModel(path=folder, role=role, bucket_refs=refs)
        self.lost.discard(folder)
        ranks.hosted = Hosted(path=folder, since_s=time.time())
        self._remember()

    async def _forget(self, paths: Sequence[str]) -> None:
        for path in paths:
            owner = self.state.roles[self.state.models.pop(path).role]
            await owner.call(HostingActor.drop, timeout_s=self.timeouts.call_s)(path)
        self._remember()

    def _remember(self) -> None:
        if self.record is not None:
            self.record.write(self.state)
