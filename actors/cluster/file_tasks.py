"""Small Ray tasks that work on the files of the node that they are sent to."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import actors
import rlhf_ray
from rlhf_ray.disk import room_for


@dataclass(frozen=True, kw_only=True)
class FileStamp:
    """Tells a file's content from any other."""

    num_bytes: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What a node says of itself.

    Attributes:
        code: As `code_of_package` gives it there.
        sees_token: Whether the driver's folder is there.
        missing: Paths that are not.
    """

    code: str
    sees_token: bool
    missing: frozenset[str]


def start_on(node_id: str, task: Any, *arguments: Any) -> Any:
    """Start one of the tasks below on a node; returns the reference to its answer."""
    there = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    return task.options(scheduling_strategy=there).remote(*arguments)


def code_of_package() -> str:
    """Tells this project's code on this machine from any other; shipped or installed alike."""
    digest = hashlib.blake2b(digest_size=4)
    for package in (rlhf_ray, actors):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def stamps_of(folder: str) -> dict[str, FileStamp]:
    """Every file below a folder, by its path in it; none where there is no folder."""
    return {
        str(path.relative_to(folder)): _stamp(path)
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def _stamp(path: Path) -> FileStamp:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return FileStamp(num_bytes=path.stat().st_size, digest=digest)


@ray.remote(num_cpus=0)
def report(token: str, paths: Sequence[str]) -> NodeReport:
    """Look for the driver's token and for paths, as an actor on this node would."""
    folder = Path(token).parent
    return NodeReport(
        code=code_of_package(),
        # Listing a folder has a network file system ask its server; a look-up may be cached.
        sees_token=folder.is_dir() and Path(token).name in os.listdir(folder),
        missing=frozenset(path for path in paths if not Path(path).expanduser().exists()),
    )


def part_of(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(f".{path.name}.part")


@ray.remote(num_cpus=0)
def list_files(folder: str) -> dict[str, FileStamp]:
    """As `stamps_of`, on the node, without what a transfer that was cut off has left there."""
    for left in Path(folder).rglob(".*.part"):
        left.unlink(missing_ok=True)  # two nodes may have one disk
    return stamps_of(folder)


@ray.remote(num_cpus=0)
def read_chunk(path: str, offset: int, num_bytes: int) -> bytes:
    """A part of a file."""
    with Path(path).open("rb") as file:
        file.seek(offset)
        return file.read(num_bytes)


@ray.remote(num_cpus=0)
def write_chunk(path: str, offset: int, data: bytes) -> None:
    """Write a part of a file, which is made with its folder if it is not there."""
    with room_for("a file of the run", Path(path)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.seek(offset)
            file.write(data)


@ray.remote(num_cpus=0)
def finish_file(written: str, path: str, num_bytes: int) -> FileStamp:
    """Give a file that was written aside its name; returns what it holds."""
    os.truncate(written, num_bytes)
    stamp = _stamp(Path(written))
    os.replace(written, path)
    return stamp


@ray.remote(num_cpus=0)
def remove_folder(folder: str, marker: str) -> None:
    """Remove a folder, unless the driver's marker in it shows that it is the driver's own."""
    if Path(folder).is_dir() and marker not in os.listdir(folder):
        shutil.rmtree(folder)
