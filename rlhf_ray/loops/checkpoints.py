"""Checkpoints that are whole or not there: written aside, synced, renamed, verified when read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.errors import RunError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


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

    def begin(self, step: int) -> Path:
        """An empty folder to write into; it does not count as a checkpoint yet."""
        folder = self.root / f".writing_{step:08d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def commit(self, step: int, state: Mapping[str, Any], *, roles: Sequence[str]) -> Path:
        """Seal what was written since `begin`: state, digests, fsync, rename; then prune.

        Args:
            step: As given to `begin`.
            state: The controllers' state, as JSON can hold it.
            roles: Folders that must be there.

        Raises:
            RunError: A role's folder is empty: its ranks wrote somewhere else.
        """
        folder = self.root / f".writing_{step:08d}"
        for role in roles:
            if not any((folder / role).glob("*")):
                raise RunError(
                    f"the checkpoint of {role} is not in {folder}: its ranks wrote somewhere else"
                )
        digests = {
            str(path.relative_to(folder)): _digest(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        manifest = {"step": step, "state": dict(state), "files": digests}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in [*folder.rglob("*"), folder]:
            _sync(path)
        final = self._folder(step)
        replaced = self.root / f".replaced_{step:08d}"
        if final.exists():
            final.rename(replaced)
        folder.rename(final)
        _sync(self.root)
        shutil.rmtree(replaced, ignore_errors=True)
        for old in self._folders()[: -self.keep]:
            shutil.rmtree(old)
        return final

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; torn or corrupt ones are passed over and logged."""
        for folder in reversed(self._folders()):
            try:
                return _read(folder)
            except (OSError, ValueError, KeyError) as error:
                logger.warning(
                    "checkpoint %s is not usable, trying the one before: %s", folder, error
                )
        return None

    def _folder(self, step: int) -> Path:
        return self.root / f"step_{step:08d}"

    def _folders(self) -> list[Path]:
        return sorted(self.root.glob("step_*"))


def _read(folder: Path) -> Checkpoint:
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, digest in manifest["files"].items():
        if _digest(folder / name) != digest:
            raise ValueError(f"{name} has changed since it was written")
    return Checkpoint(step=manifest["step"], folder=folder, state=manifest["state"])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
