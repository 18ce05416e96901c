"""The process of an agent: how it starts, what it prints, and the end of all that came of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

from rlhf_ray.deadlines import DeadlineError, deadline, in_daemon_thread
from rlhf_ray.process_tree import kept

logger = logging.getLogger(__name__)

_KEPT_BYTES = 16_384  # of what it prints
# Of processes that have ended, or were killed.
_END_S = 10.0


class _Tail(asyncio.Protocol):
    """The last that a stream has said so far."""

    def __init__(self) -> None:
        self.kept, self.ended = b"", asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.kept = (self.kept + data)[-_KEPT_BYTES:]

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set()


class AgentProcess:
    """A command that runs, with all processes that come of it."""

    def __init__(self, command: Sequence[str], task: str, environment: Mapping[str, str]) -> None:
        """Start it, for a running event loop.

        Args:
            command: The program and its arguments.
            task: What it reads on its standard input.
            environment: Its environment variables.
        """
        with tempfile.TemporaryFile() as given:  # it need not read it, and no pipe fills up
            given.write(task.encode())
            given.seek(0)
            self._process = subprocess.Popen(
                kept(command),
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=environment,
                start_new_session=True,
            )
        self._end: asyncio.Future[int] | None = None
        self._tails: list[_Tail] = []
        self._streams: list[asyncio.BaseTransport] = []

    async def listen(self) -> None:
        """Read what it prints, so that no pipe fills up."""
        loop, process = asyncio.get_running_loop(), self._process
        for stream in (process.stdout, process.stderr):
            transport, tail = await loop.connect_read_pipe(_Tail, stream)
            self._streams.append(transport)
            self._tails.append(tail)

    @property
    def status(self) -> int | None:
        """What it ended with; None before."""
        return self._process.poll()

    async def ended(self, timeout_s: float) -> int:
        """The status that it ends with; all that came of it has ended then.

        Raises:
            DeadlineError: It has not.
        """
        async with deadline(timeout_s, actor="the agent", operation="its end"):
            if self._end is None:
                # By the process itself: others may have its streams open after its end.
                waiting = in_daemon_thread(self._process.wait, name="an agent")
                self._end = asyncio.ensure_future(waiting)
            return await asyncio.shield(self._end)

    async def printed(self) -> tuple[str, str]:
        """The last of its output and its errors, behind its end."""
        try:
            async with deadline(_END_S, actor="the agent", operation="its output"):
                for tail in self._tails:
                    await tail.ended.wait()
        except DeadlineError as error:  # somebody has its streams who could not be killed
            logger.warning("%s; what it has said so far is taken", error)
        output, errors = (tail.kept.decode(errors="replace") for tail in self._tails)
        return output, errors

    async def close(self) -> None:
        """End it and all that came of it; what is late is logged, and killed by force."""
        try:
            self._process.terminate()
            await self.ended(_END_S)
        except DeadlineError as error:
            logger.warning("an agent is killed: %s", error)
        finally:
            if self.status is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            for stream in self._streams:
                stream.close()
