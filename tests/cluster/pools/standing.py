"""A standing pool on a cluster of its own, and the commands that use it, each a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND_S = 200
NAME = "test"


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a command said and how it ended; below 0 by that signal."""

    status: int
    said: str


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A pool that is up.

    Attributes:
        name: Of the pool.
        registry: Where pools are registered.
        environment: In which commands find it.
    """

    name: str
    registry: Path
    environment: dict[str, str]

    @property
    def cluster(self) -> dict[str, Any]:
        """As `pool up` registered it."""
        found: dict[str, Any] = json.loads((self.registry / f"{self.name}.json").read_text())
        return found

    def run(self, *arguments: str) -> Command:
        """Run `rlhf-ray` with these arguments."""
        return run_python(["-m", "launch.cli", *arguments], self.environment)

    def script(self, *arguments: str) -> Command:
        """Run Python with these arguments."""
        return run_python(arguments, self.environment)


def shared_memory() -> set[str]:
    """Names of what is there."""
    return {path.name for path in Path("/dev/shm").iterdir()}


def process_of(role: str, told: str) -> str:
    """The process number of a role's first rank, in the table of `pool status`."""
    rows = [[cell.strip() for cell in line.split("│")] for line in told.splitlines()]
    return next(row[5] for row in rows if len(row) > 5 and row[1] == role)


def environment_in(folder: Path) -> dict[str, str]:
    """One in which pools are registered below a folder, and no other cluster is known."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "TMPDIR": str(folder),
        "RAY_TMPDIR": "/tmp",  # a socket's path has room for 107 bytes
        "COLUMNS": "400",  # a table that folds no path
    }


@contextmanager
def standing_pool(folder: Path, job: str, file: Path, name: str) -> Iterator[Standing]:
    """`pool up` for a job or pipeline, and `pool down` in the end if it was not before."""
    environment = environment_in(folder)
    assert run_python(["-m", "launch.cli", "pool", "status"], environment).said.startswith(
        "no pool"
    )
    started = ["pool", "up", str(file), "--job", job, "--name", name]
    try:
        up = run_python(["-m", "launch.cli", *started], environment)
        assert up.status == 0, up.said
        [entry] = folder.glob(f"rlhf-ray-*/{name}.json")
        yield Standing(name=name, registry=entry.parent, environment=environment)
    finally:
        if [*folder.glob(f"rlhf-ray-*/{name}.json")]:
            run_python(["-m", "launch.cli", "pool", "down", "--name", name], environment)


def run_python(arguments: Sequence[str], environment: Mapping[str, str]) -> Command:
    """Python with these arguments, to its end."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    return Command(status=done.returncode, said=done.stdout + done.stderr)
