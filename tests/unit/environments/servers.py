"""Servers in processes of their own, at ports that are free."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_S = 60.0


@contextmanager
def served(script: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of `script PORT`, a file beside this one, once it answers; and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = Path(__file__).with_name(script)
    process = subprocess.Popen([sys.executable, str(file), str(port)], stderr=subprocess.DEVNULL)
    try:
        _wait(port, process)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait(START_S)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + START_S
    while True:
        with socket.socket() as asked:
            if not asked.connect_ex(("127.0.0.1", port)):
                return
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < until_s, "the server does not answer"
        time.sleep(0.05)
