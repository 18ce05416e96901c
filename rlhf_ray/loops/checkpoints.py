"""Checkpoints that are whole or not there: written aside, synced, renamed, verified when read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.disk import room_for
from rlhf_ray.errors import ConfigError, RunError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# hashlib lets other threads run while it digests; a disk seldom feeds more of them.
NUM_DIGEST_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was found whole.

    Attributes:
        step: Steps that were done when it was written.
        folder: Holds one folder a trained role.
        state: The controllers' state.
    """

    step: int
    folder: Path
    state: Mapping[str, Any]


class CheckpointStore:
    """The folder `checkpoints` of a run."""

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        """Use `run_dir/checkpoints`, keeping the newest `keep`."""
        self.root, self.keep = run_dir / "checkpoints", keep

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """An empty folder to write into and `commit`; gone again if that does not come to its end.

        Raises:
            RunError: The disk is full.
        """
        folder = self._unfinished(step)
        for left in self.root.glob(".writing_*"):  # by a run that was killed
            shutil.rmtree(left)
        try:
            with room_for("a checkpoint", folder):
                folder.mkdir(parents=True)
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, step: int, state: Mapping[str, Any], *, roles: Sequence[str]) -> Path:
        """Seal what was written in `writing`: state as JSON, digests, fsync, rename; then prune.

        What is there of later steps goes as well: this run passed it over, and goes another way.

        Raises:
            RunError: A role's folder is empty: its ranks wrote somewhere else.
        """
        folder = self._unfinished(step)
        for role in roles:
            if not any((folder / role).glob("*")):
                raise RunError(
                    f"the checkpoint of {role} is not in {folder}: its ranks wrote somewhere else"
                )
        names = [
            str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()
        ]
        digests = _digests(folder, names)
        manifest = {"step": step, "state": dict(state), "files": digests}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in [*folder.rglob("*"), folder]:
            _sync(path)
        final = self._folder(step)
        replaced = self.root / f".replaced_{step:08d}"
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
        folders = self._folders()
        until_this = folders.index(final) + 1
        for unwanted in [*folders[: max(0, until_this - self.keep)], *folders[until_this:]]:
            shutil.rmtree(unwanted)
        return final

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, None where there was never one.

        Torn or corrupt ones are passed over and logged.

        Raises:
            ConfigError: There are checkpoints and none of them is whole.
        """
        folders = self._folders()
        for folder in reversed(folders):
            try:
                return _read(folder)
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

    def _unfinished(self, step: int) -> Path:
        return self.root / f".writing_{step:08d}"

    def _folder(self, step: int) -> Path:
        return self.root / f"step_{step:08d}"

    def _folders(self) -> list[Path]:
        return sorted(self.root.glob("step_*"))


def _read(folder: Path) -> Checkpoint:
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, digest in _digests(folder, list(manifest["files"])).items():
        if digest != manifest["files"][name]:
            raise ValueError(f"{name} has changed since it was written")
    return Checkpoint(step=manifest["step"], folder=folder, state=manifest["state"])


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Of files by their names, several at a time: a rank's states are tens of gigabytes."""
    with ThreadPoolExecutor(NUM_DIGEST_THREADS) as threads:
        return dict(zip(names, threads.map(_digest, [folder / n for n in names]), strict=True))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
