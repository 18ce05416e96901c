"""Runs Python code of a policy in a sandbox: a process that has given everything away before.

Code runs in namespaces of its own, as a user without rights: it sees the system's files and Python
read-only and a home in memory, no other process, no network; time, memory, processes and files are
limited, for all that it starts together. The page beside this file says what that does not stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from rlhf_ray.deadlines import deadline, side_by_side
from rlhf_ray.errors import RunError
from rlhf_ray.sandbox import inside
from rlhf_ray.sandbox.limits import Limits, Outcome

# For Python's start on a busy machine, and the end of many processes.
_SLACK_S = 60.0
_CHUNK_BYTES = 65_536
DEFAULTS = Limits()
_ENVIRONMENT = {
    "HOME": inside.HOME,
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    # A thread counts as a process, and libraries start one for each of the machine's processors.
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}


class SandboxRefused(RunError):
    """The machine does not give a protection: nothing was run. The message names it."""


async def run_python(
    code: str,
    *,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    limits: Limits = DEFAULTS,
) -> Outcome:
    """Run code as a script, by this process's own Python and with its packages.

    Args:
        code: What is run.
        stdin: What it reads.
        files: Texts by their paths in its working directory.
        limits: What it may take.

    Raises:
        SandboxRefused: The machine does not give a protection.
        DeadlineError: The sandbox did not end; it was killed.
    """
    job = {
        "files": {**(files or {}), "main.py": code, ".stdin": stdin},
        "stdin": ".stdin",
        "command": [sys.executable, "-I", "-B", "main.py"],
        "environment": _ENVIRONMENT,
        "python": [*sorted(_folders_of_python()), *_links_of_python()],
        "wall_s": limits.wall_s,
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_mb * 2**20,
        "disk_bytes": limits.disk_mb * 2**20,
        "processes": limits.processes,
    }
    with tempfile.TemporaryFile() as status:
        stdout, stderr = await _run(job, status, limits)
        status.seek(0)
        ended = json.loads(status.read() or b'{"refused": "it ended without a word"}')
    if "refused" in ended:
        raise SandboxRefused(
            f"no sandbox on this machine: {ended['refused']}; it takes Linux 5.12 or later, and "
            f"user namespaces, which containers often forbid {stderr[-500:]}".rstrip()
        )
    return Outcome(stdout=stdout, stderr=stderr, **ended)


def _folders_of_python() -> set[str]:
    """Where its files are, by the names that it has for them and where these lead."""
    folders = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    return folders | {os.path.realpath(folder) for folder in folders}


def _links_of_python() -> list[str]:
    """The program, and what each link on the way to it names; perhaps in the user's own folder."""
    links = [sys.executable]
    while os.path.islink(links[-1]):
        target = os.path.join(os.path.dirname(links[-1]), os.readlink(links[-1]))
        links.append(os.path.normpath(target))
    return links


async def _run(job: Mapping[str, Any], status: IO[bytes], limits: Limits) -> tuple[str, str]:
    """What it wrote to stdout and stderr; how it ended is written to `status`."""
    script = str(Path(inside.__file__))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-B", script, str(status.fileno()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=[status.fileno()],
        env={},
        start_new_session=True,
    )  # fmt: skip
    wall_s = limits.wall_s + _SLACK_S
    try:
        async with deadline(wall_s, actor="the sandbox", operation="running code"):
            _, *outputs = await side_by_side(
                [
                    _give(process.stdin, json.dumps(job).encode()),
                    _read(process.stdout, limits.output_bytes),
                    _read(process.stderr, limits.output_bytes),
                ]
            )
            await process.wait()
    finally:
        # All others end with this one.
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        async with deadline(_SLACK_S, actor="the sandbox", operation="ending"):
            await process.wait()
    stdout, stderr = (output.decode("utf-8", "replace") for output in outputs)
    return stdout, stderr


async def _give(stdin: asyncio.StreamWriter | None, data: bytes) -> bytes:
    assert stdin is not None
    with contextlib.suppress(ConnectionError):  # what became of it, the status says
        stdin.write(data)
        await stdin.drain()
        stdin.close()
    return b""


async def _read(stream: asyncio.StreamReader | None, most: int) -> bytes:
    """Up to so many bytes; the rest is read as well, so that nobody waits for room."""
    assert stream is not None
    kept = bytearray()
    while chunk := await stream.read(_CHUNK_BYTES):
        kept += chunk[: most - len(kept)]
    return bytes(kept)
