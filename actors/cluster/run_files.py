"""A run's files on nodes that do not see the driver's folders.

Ranks write checkpoints and exports where they are. What they wrote is brought to the driver, whose
copy is the one that counts; what they are to read is sent to them. Both go through Ray in chunks,
and every file is compared by its digest. On a shared file system nothing is done.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from actors.cluster import file_tasks
from actors.cluster.deadline import within
from actors.cluster.file_tasks import FileStamp, part_of, stamps_of, start_on
from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import RoleActor
from rlhf_ray.deadlines import in_order, in_thread, side_by_side
from rlhf_ray.disk import room_for
from rlhf_ray.errors import RunError

# What driver and node hold of a file at a time: so many pieces are on their way between them.
CHUNK_BYTES, CHUNKS_IN_FLIGHT = 8 * 2**20, 4


class ExportingActor(Protocol):
    """What an export asks of ranks; rank 0 writes."""

    def export(self, folder: str, tokenizer_path: str) -> None:
        """Write the model."""

    def describe(self, folder: str, tokenizer_path: str) -> None:
        """Write configuration and tokenizer without the weights."""


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """Files of the ranks of one role, or of all roles.

    Attributes:
        distant: Addresses of the nodes that do not see the driver's run folder, by their ids.
        ranks: Node id of each rank.
        timeout_s: Deadline of one chunk, or of digests of one folder.
    """

    distant: Mapping[str, str] = field(default_factory=dict)
    ranks: tuple[str, ...] = ()
    timeout_s: float = 0.0

    def of_ranks(self, node_ids: Sequence[str]) -> RunFiles:
        """The same for other ranks."""
        return replace(self, ranks=tuple(node_ids))

    def moved(self, node_id: str, to: str, address: str) -> RunFiles:
        """The same after ranks of a node that is gone came up on another one.

        Whether that one sees the driver's folder is not asked: where it does, nothing is brought.
        """
        ranks = tuple(to if node == node_id else node for node in self.ranks)
        distant = {node: name for node, name in self.distant.items() if node != node_id}
        return replace(self, ranks=ranks, distant={**distant, to: address})

    @property
    def _distant_ranks(self) -> list[str]:
        return [node for node in dict.fromkeys(self.ranks) if node in self.distant]

    async def fetch(self, folder: str, *, into: str = "") -> None:
        """Bring what the ranks wrote below `folder` here, or `into` another; joins what is there.

        Raises:
            RunError: Two nodes hold different files of one name, or one changed on its way.
        """
        nodes, target = self._distant_ranks, into or folder
        if not nodes:
            return
        listed = await self._ask(nodes, file_tasks.list_files, folder)
        here = await self._stamps_here(target)
        lacking = [dict(files.items() - here.items()) for files in listed]
        await side_by_side(
            self._fetch_files(node, folder, target, files)
            for node, files in zip(nodes, _each_once(folder, lacking), strict=True)
        )

    async def export(
        self,
        ranks: RoleHandle[Any],
        folder: str,
        tokenizer_path: str,
        *,
        weights: bool = True,
        timeout_s: float,
    ) -> None:
        """Have a role's ranks write their model, in place of what the driver's folder holds.

        The tokenizer goes beside it. Without `weights` only that and the configuration do.
        """
        await self.send(tokenizer_path)
        write = ExportingActor.export if weights else ExportingActor.describe
        await ranks.call(write, timeout_s=timeout_s)(folder, tokenizer_path)
        first, aside = self.of_ranks(self.ranks[:1]), f"{folder}.part"
        if first._distant_ranks:
            shutil.rmtree(aside, ignore_errors=True)
            await first.fetch(folder, into=aside)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(aside, folder)

    async def send(self, folder: str) -> None:
        """Bring the driver's files below `folder` to every rank's node.

        Raises:
            RunError: One changed on its way.
        """
        nodes = self._distant_ranks
        if not nodes:
            return
        here = await self._stamps_here(folder)
        listed = await self._ask(nodes, file_tasks.list_files, folder)
        await side_by_side(
            self._send_files(node, folder, dict(here.items() - there.items()))
            for node, there in zip(nodes, listed, strict=True)
        )

    async def clear(self, folder: str) -> None:
        """Remove what the ranks' nodes hold below `folder`; the driver's stays."""
        nodes = self._distant_ranks
        if not nodes:
            return
        marker = Path(folder, f".{uuid.uuid4().hex}")
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        try:
            await self._ask(nodes, file_tasks.remove_folder, folder, marker.name)
        finally:
            marker.unlink()

    async def _fetch_files(
        self, node: str, folder: str, target: str, files: Mapping[str, FileStamp]
    ) -> None:
        for name, stamp in files.items():
            source, path = str(Path(folder, name)), Path(target, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            written, digest = part_of(path), hashlib.blake2b(digest_size=16)
            asked = (
                self._ask([node], file_tasks.read_chunk, source, offset, CHUNK_BYTES)
                for offset in range(0, stamp.num_bytes, CHUNK_BYTES)
            )
            try:
                async with aclosing(in_order(asked, at_a_time=CHUNKS_IN_FLIGHT)) as chunks:
                    with room_for("a file of the run", path), written.open("wb") as file:
                        async for [chunk] in chunks:
                            file.write(chunk)
                            digest.update(chunk)
                if digest.hexdigest() != stamp.digest:
                    raise RunError(f"{source} of {self.distant[node]} changed while it was read")
                os.replace(written, path)
            finally:
                written.unlink(missing_ok=True)

    async def _send_files(self, node: str, folder: str, files: Mapping[str, FileStamp]) -> None:
        for name, stamp in files.items():
            path = Path(folder, name)
            written = str(part_of(path))
            with path.open("rb") as file:
                asked = (
                    self._ask(
                        [node], file_tasks.write_chunk, written, offset, file.read(CHUNK_BYTES)
                    )
                    for offset in range(0, stamp.num_bytes or 1, CHUNK_BYTES)  # an empty file too
                )
                async with aclosing(in_order(asked, at_a_time=CHUNKS_IN_FLIGHT)) as answers:
                    async for _ in answers:
                        continue
            [there] = await self._ask(
                [node], file_tasks.finish_file, written, str(path), stamp.num_bytes
            )
            if there != stamp:
                raise RunError(f"{path} changed on its way to {self.distant[node]}")

    async def _stamps_here(self, folder: str) -> Mapping[str, FileStamp]:
        return await in_thread(
            partial(stamps_of, folder),
            timeout_s=self.timeout_s,
            actor="the driver",
            operation=f"files of the run: {folder}",
        )

    async def _ask(self, nodes: Sequence[str], task: Any, *arguments: Any) -> list[Any]:
        return await within(
            [start_on(node, task, *arguments) for node in nodes],
            timeout_s=self.timeout_s,
            actors=[f"node {self.distant[node]}" for node in nodes],
            operation=f"files of the run: {arguments[0]}",
        )


async def or_death(ranks: RoleHandle[Any], work: Awaitable[None], *, hang_s: float) -> None:
    """Work on files of a role's nodes; where it fails and the role has died, that is why.

    Ray says of a task on a node that is gone only that it cannot run there.

    Raises:
        ActorDied: An actor of the role is dead, or does not answer within `hang_s`.
        RunError: It failed for another reason.
    """
    try:
        await work
    except RunError:
        await ranks.call(RoleActor.health, timeout_s=hang_s)()
        raise


def _each_once(
    folder: str, files_of: Sequence[Mapping[str, FileStamp]]
) -> list[dict[str, FileStamp]]:
    """From each node the files that no node before has.

    Raises:
        RunError: Two hold different files under one name.
    """
    known: dict[str, FileStamp] = {}
    picked = []
    for files in files_of:
        picked.append({name: stamp for name, stamp in files.items() if name not in known})
        for name, stamp in files.items():
            if known.setdefault(name, stamp) != stamp:
                raise RunError(f"two nodes hold different files as {folder}/{name}")
    return picked
