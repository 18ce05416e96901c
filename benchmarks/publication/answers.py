"""Calls between the processes: a method's name and arguments go, its answer comes back."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

# Of a call; a process that imports its libraries answers later.
ANSWER_S, START_S = 60.0, 300.0


def serve(host: Any, connections: Sequence[Connection]) -> None:
    """Answer with the host's methods until one of the callers hangs up."""
    while True:
        for connection in wait(connections):
            try:
                method, arguments = connection.recv()
            except EOFError:
                return
            try:
                connection.send((True, getattr(host, method)(*arguments)))
            except Exception:
                connection.send((False, traceback.format_exc()))


def call(
    connections: Sequence[Connection], method: str, *arguments: Any, timeout_s: float = ANSWER_S
) -> list[Any]:
    """Call all at the same time.

    Raises:
        TimeoutError: One does not answer.
        RuntimeError: One raised; with its traceback.
    """
    for connection in connections:
        connection.send((method, arguments))
    answers = []
    for connection in connections:
        if not connection.poll(timeout_s):
            raise TimeoutError(f"no answer to {method} within {timeout_s:.0f} s")
        is_right, answer = connection.recv()
        if not is_right:
            raise RuntimeError(f"{method} failed in another process:\n{answer}")
        answers.append(answer)
    return answers
