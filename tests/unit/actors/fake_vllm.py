"""vLLM's engine as an actor calls it: calls are written down, and answered as a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any

# The first import takes seconds, on a busy machine a minute: not inside of a call's deadline.
import vllm.sampling_params  # noqa: F401


class FakeEngine:
    """A request is answered when a test says so.

    Attributes:
        calls: What was asked, in order.
        answers: By its name, what a request's output comes from.
        refused: The request that is too long.
        hangs: The method that is never answered: what waits for an engine's process that died.
        fails: The method that fails.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.answers: dict[str, asyncio.Queue[Any]] = {}
        self.refused = self.hangs = self.fails = ""
        self.errored = False

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        return lambda *_, **__: self._call(method)

    async def _call(self, name: str, answer: Any = None) -> Any:
        self.calls.append(name)
        await asyncio.sleep(0)
        method = name.partition(" ")[0]
        if method == self.hangs:
            await asyncio.Event().wait()
        if method == self.fails:
            raise ValueError(f"{method} is not possible")
        return answer

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        await self._call("pause and forget" if clear_cache else "pause")

    async def resume_generation(self) -> None:
        await self._call("resume")

    async def add_request(
        self, request_id: str, prompt: Any, params: Any, *, priority: int
    ) -> asyncio.Queue[Any]:
        await self._call(f"add {request_id}")
        if request_id == self.refused:
            raise ValueError(f"{request_id} is too long")
        self.answers[request_id] = asyncio.Queue()
        return self.answers[request_id]

    async def abort(self, request_ids: Collection[str]) -> None:
        for request_id in sorted(request_ids):
            await self._call(f"abort {request_id}")

    async def wake_up(self, tags: Sequence[str]) -> Any:
        return await self._call("wake_up", True)

    async def collective_rpc(self, method: str, timeout: float, args: Sequence[Any] = ()) -> Any:
        return await self._call(f"collective_rpc {method}", [1.5])

    def answer(
        self, request_id: str, reason: str = "stop", versions: Sequence[str] = ("3", "3")
    ) -> None:
        """Two tokens, of these versions."""
        logprobs = SimpleNamespace(logprobs=[-1.0, -2.0], start_indices=[0, 1])
        spans = [
            SimpleNamespace(version=version, start=start, end=start + 1)
            for start, version in enumerate(versions)
        ]
        output = SimpleNamespace(
            finish_reason=reason, stop_reason=None, token_ids=[5, 6], logprobs=logprobs,
            weight_versions=spans,
        )  # fmt: skip
        times = SimpleNamespace(
            queued_ts=1.0, scheduled_ts=1.5, first_token_ts=2.0, last_token_ts=4.0
        )
        answer = SimpleNamespace(finished=True, outputs=[output], metrics=times)
        self.answers[request_id].put_nowait(answer)

    def called(self, name: str) -> list[str]:
        return [call for call in self.calls if call.startswith(name)]


class Tokenizer:
    def decode(self, token_ids: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, token_ids))
