"""An OpenAI-compatible endpoint whose answers somebody else gives, session by session.

`POST <url of a session>/chat/completions` waits until its session is answered. What a request asks
for beside messages (a temperature, a number of tokens) is the job's business and not looked at.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from rlhf_ray.deadlines import deadline

MODEL = "policy"
START_S = 30.0
# Chats of agents carry files and pages.
_MOST_BYTES = 64 * 2**20


class Session:
    """One conversation, which has one request at a time.

    Attributes:
        url: Its base URL, as OpenAI's clients take it.
    """

    def __init__(self, url: str) -> None:
        """Nothing is asked."""
        self.url = url
        self._asked: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self._answer: asyncio.Future[Mapping[str, Any]] | None = None
        self._is_closed = False

    async def next_request(self, timeout_s: float) -> Mapping[str, Any]:
        """The body of the next request, once it is there.

        Raises:
            DeadlineError: It did not come in time.
        """
        async with deadline(timeout_s, actor="the agent", operation="its next request"):
            return await self._asked.get()

    def answer(self, message: Mapping[str, Any]) -> None:
        """Answer the request that waits."""
        assert self._answer is not None, "nothing was asked"
        if not self._answer.done():  # else the agent has given up
            finish_reason = "tool_calls" if message.get("tool_calls") else "stop"
            choice = {"index": 0, "message": dict(message), "finish_reason": finish_reason}
            self._answer.set_result(
                {
                    "id": f"chatcmpl-{time.monotonic_ns()}",
                    "object": "chat.completion",
                    "created": int(time.time()),
                    "model": MODEL,
                    "choices": [choice],
                }
            )

    def close(self) -> None:
        """Whoever waits is told that it is over."""
        self._is_closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.cancel()

    async def ask(self, body: Mapping[str, Any]) -> web.Response:
        """The response to a request."""
        if self._is_closed:
            return _refused(410, "this session is over")
        if self._answer is not None and not self._answer.done():
            return _refused(409, "a session has one request at a time")
        if fault := _fault_of(body):
            return _refused(400, fault)
        self._answer = asyncio.get_running_loop().create_future()
        self._asked.put_nowait(body)
        try:
            completion = await asyncio.shield(self._answer)
        except asyncio.CancelledError:
            if self._is_closed:
                return _refused(410, "this session is over")
            raise
        return _streamed(completion) if body.get("stream") else web.json_response(dict(completion))


class Endpoint:
    """The server, for one event loop: on this machine alone, at a port that is free."""

    def __init__(self) -> None:
        """Not started."""
        self._runner: web.AppRunner | None = None
        self._numbers = itertools.count()
        self._sessions: dict[str, Session] = {}
        self._lock = asyncio.Lock()
        self._address = ""

    async def open(self) -> Session:
        """A new session; the server is started where it is not."""
        async with deadline(START_S, actor="the endpoint", operation="its start"), self._lock:
            if self._runner is None:
                await self._start()
        name = str(next(self._numbers))
        session = Session(f"{self._address}/{name}/v1")
        self._sessions[name] = session
        return session

    def forget(self, session: Session) -> None:
        """End a session."""
        session.close()
        self._sessions = {name: one for name, one in self._sessions.items() if one is not session}

    async def close(self) -> None:
        """End all of them, and the server."""
        for session in list(self._sessions.values()):
            self.forget(session)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _start(self) -> None:
        application = web.Application(client_max_size=_MOST_BYTES)
        application.router.add_post("/{session}/v1/chat/completions", self._complete)
        application.router.add_get("/{session}/v1/models", self._models)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        [(host, port)] = runner.addresses
        self._runner, self._address = runner, f"http://{host}:{port}"

    async def _complete(self, request: web.Request) -> web.Response:
        session = self._sessions.get(request.match_info["session"])
        if session is None:
            return _refused(404, "there is no such session")
        try:
            body = await request.json()
        except ValueError as error:
            return _refused(400, f"the request must be JSON: {error}")
        return await session.ask(body)

    async def _models(self, request: web.Request) -> web.Response:
        models = [{"id": MODEL, "object": "model", "created": 0, "owned_by": "rlhf-ray"}]
        return web.json_response({"object": "list", "data": models})


def text_of(content: Any) -> str:
    """A message's text: a string, parts of text, or nothing.

    Raises:
        ValueError: It has another kind of part.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else [content]
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise ValueError(f"messages must be texts, got a part {part!r:.60}")
    return "".join(str(part["text"]) for part in parts)


def _fault_of(body: Any) -> str:
    """Why a request cannot be answered; empty where it can."""
    if not isinstance(body, Mapping) or not isinstance(body.get("messages"), list):
        return "a request must be an object with messages"
    if not all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in body["messages"]):
        return "each message must be an object with a role"
    if body.get("n", 1) != 1:
        return f"n must be 1, got {body['n']!r}"
    return ""


def _streamed(completion: Mapping[str, Any]) -> web.Response:
    """A completion as clients read a stream: one event with all of it, and the end."""
    [choice] = completion["choices"]
    message = choice["message"]
    calls = [{"index": n, **call} for n, call in enumerate(message.get("tool_calls", ()))]
    delta = {**message, **({"tool_calls": calls} if calls else {})}
    chunk = {
        **completion,
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": choice["finish_reason"]}],
    }
    text = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    return web.Response(text=text, content_type="text/event-stream")


def _refused(status: int, message: str) -> web.Response:
    """As OpenAI's clients read errors."""
    error = {"message": message, "type": "invalid_request_error"}
    return web.json_response({"error": error}, status=status)
