"""Checkpoints that are whole or not there: written aside, synced, renamed, verified when read.

Ranks write while the run waits. What follows (digests, fsync, renaming, pruning) goes on beside the
next steps. Whatever kills a run, and whenever, a whole checkpoint is found: the new one or, until
it has its name, the one before.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import logging
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import TracebackType
from typing import Any

from rlhf_ray.deadlines import in_thread
from rlhf_ray.disk import room_for
from rlhf_ray.errors import ConfigError, RlhfRayError, RunError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# hashlib lets other threads run while it digests; a disk seldom feeds more of them.
NUM_DIGEST_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was found.

    Attributes:
        step: Steps that were done when it was written.
        folder: Holds one folder a trained role.
        state: The controllers' state.
    """

    step: int
    folder: Path
    state: Mapping[str, Any]


class CheckpointStore:
    """The folder `checkpoints` of a run.

    A run that saves is inside of `async with store`, whose end waits for the last commit, unless
    the run is stopped.
    """

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        """Use `run_dir/checkpoints`, keeping the newest `keep`."""
        self.root, self.keep = run_dir / "checkpoints", keep
        self._committing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> CheckpointStore:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not isinstance(error, Exception | None):
            return  # stopped: nobody waits for a disk, and the checkpoint before is whole
        try:
            await self.settled()
        except RlhfRayError as fault:
            if error is None:
                raise
            logger.error("%s", fault)  # what ended the run is raised

    @asynccontextmanager
    async def saving(
        self, step: int, state: Mapping[str, Any], roles: Sequence[str], *, timeout_s: float
    ) -> AsyncIterator[Path]:
        """An empty folder for the ranks of `roles`; from the end of the block on it is committed.

        That goes on beside the run, for at most `timeout_s`, with the state as it is now.

        Raises:
            RunError: The checkpoint before could not be committed, or the disk is full.
        """
        await self.settled()
        state = copy.deepcopy(dict(state))
        with self.writing(step) as folder:
            yield folder
        commit = in_thread(
            partial(self.commit, step, state, roles=roles),
            timeout_s=timeout_s,
            actor="the driver",
            operation=f"committing the checkpoint of step {step}",
        )
        self._committing = asyncio.create_task(commit)

    async def settled(self) -> None:
        """Wait until what was saved is committed.

        Raises:
            RunError: It could not be; the checkpoints before are as they were.
        """
        committing, self._committing = self._committing, None
        if committing is not None:
            await committing

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """An empty folder to write into and then to `commit`; gone again if the block fails.

        Raises:
            RunError: The disk is full.
        """
        folder = self._unfinished(step)
        self._tidy()
        try:
            with room_for("a checkpoint", folder):
                folder.mkdir(parents=True)
                yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def commit(self, step: int, state: Mapping[str, Any], *, roles: Sequence[str]) -> None:
        """Seal what was written in `writing`: state as JSON, digests, fsync, rename; then prune.

        What is there of later steps goes as well: this run passed it over, and goes another way.

        Raises:
            RunError: A role's folder is empty, as its ranks wrote somewhere else, or the disk is
                full or fails. Nothing is left of it.
        """
        folder = self._unfinished(step)
        try:
            with room_for("a checkpoint", folder):
                self._seal(folder, step, state, roles)
                self._name(folder, step)
                self._prune(step)
        except OSError as error:
            raise RunError(f"the checkpoint of step {step} is not committed: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, None where there was never one.

        Torn or corrupt ones are passed over and logged. Nothing is written.

        Raises:
            ConfigError: There are checkpoints and none of them is whole.
        """
        folders = self._folders()
        for folder in reversed(folders):
            try:
                return _verified(folder)
            except (OSError, ValueError, KeyError) as error:
                logger.warning(
                    "checkpoint %s is not usable, trying the one before: %s", folder, error
                )
        if folders:
            raise ConfigError(
                f"none of the {len(folders)} checkpoints in {self.root} is whole (the log says "
                "why): bring one back from a copy, or start anew in another run_dir"
            )
        return None

    def oldest(self) -> Checkpoint | None:
        """The oldest that is kept, as its manifest has it: its files are not verified."""
        for folder in self._folders():
            with suppress(OSError, ValueError, KeyError):
                return _read(folder)[0]
        return None

    def _tidy(self) -> None:
        """Remove what a run that was killed left half written or half replaced."""
        for folder in self._folders():
            if folder.name.startswith("."):
                folder.rename(self.root / f"step_{_step_of(folder)}")
        for left in [*self.root.glob(".writing_*"), *self.root.glob(".replaced_*")]:
            shutil.rmtree(left)

    def _seal(
        self, folder: Path, step: int, state: Mapping[str, Any], roles: Sequence[str]
    ) -> None:
        for role in roles:
            if not any((folder / role).glob("*")):
                raise RunError(
                    f"the checkpoint of {role} is not in {folder}: its ranks wrote somewhere else"
                )
        names = [
            str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()
        ]
        manifest = {"step": step, "state": dict(state), "files": _digests(folder, names)}
        (folder / MANIFEST).write_text(_with_digest(manifest))
        for path in [*folder.rglob("*"), folder]:
            _sync(path)

    def _name(self, folder: Path, step: int) -> None:
        """Put it in the place of what is there of that step."""
        final, replaced = self._folder(step), self.root / f".replaced_{step:08d}"
        if final.exists():
            final.rename(replaced)
        try:
            folder.rename(final)
        except OSError:
            if replaced.exists():
                replaced.rename(final)
            raise
        _sync(self.root)
        shutil.rmtree(replaced, ignore_errors=True)

    def _prune(self, step: int) -> None:
        folders = self._folders()
        until_this = folders.index(self._folder(step)) + 1
        for unwanted in [*folders[: max(0, until_this - self.keep)], *folders[until_this:]]:
            shutil.rmtree(unwanted)

    def _unfinished(self, step: int) -> Path:
        return self.root / f".writing_{step:08d}"

    def _folder(self, step: int) -> Path:
        return self.root / f"step_{step:08d}"

    def _folders(self) -> list[Path]:
        """In the order of steps; one that was to be replaced counts until another has its name."""
        found = [path for name in (".replaced_*", "step_*") for path in self.root.glob(name)]
        of_step = {_step_of(path): path for path in found}
        return [of_step[step] for step in sorted(of_step)]


def _step_of(folder: Path) -> str:
    return folder.name.removeprefix(".replaced_").removeprefix("step_")


def _verified(folder: Path) -> Checkpoint:
    checkpoint, files = _read(folder)
    for name, digest in _digests(folder, list(files)).items():
        if digest != files[name]:
            raise ValueError(f"{name} has changed since it was written")
    return checkpoint


def _read(folder: Path) -> tuple[Checkpoint, Mapping[str, str]]:
    """What the manifest says, and its digests of files.

    Raises:
        ValueError: It is not what was written, or that of another step.
    """
    text = (folder / MANIFEST).read_text()
    manifest = json.loads(text)
    if not isinstance(manifest, dict) or _with_digest(manifest) != text:
        raise ValueError(f"{MANIFEST} has changed since it was written")
    if f"{manifest['step']:08d}" != _step_of(folder):
        raise ValueError(f"it was written as the checkpoint of step {manifest['step']}")
    found = Checkpoint(step=manifest["step"], folder=folder, state=manifest["state"])
    return found, manifest["files"]


def _with_digest(manifest: Mapping[str, Any]) -> str:
    """As JSON, with a digest of itself: the state in it is checked like all other files."""
    said = {key: value for key, value in manifest.items() if key != "digest"}
    digest = hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()
    return json.dumps({**said, "digest": digest}, indent=1)


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Of files by their names, several at a time: a rank's states are tens of gigabytes."""
    # Its threads do not keep the process from ending; those of `concurrent.futures` do.
    with ThreadPool(NUM_DIGEST_THREADS) as threads:
        digests = threads.map(_digest, [folder / name for name in names], chunksize=1)
    return dict(zip(names, digests, strict=True))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
