"""Services that score, on real servers of this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

from aiohttp import web


class Service:
    """Writes down what it is asked, and answers by `answer`.

    Attributes:
        endpoint: Where requests arrive, below `base`.
        base: What of the path stands in the configuration.
        url: That address, once it is served.
        requests: Body of each request, in order.
        headers: The same requests'.
        most_in_flight: Requests at a time.
    """

    endpoint = ""
    base = "/"

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.in_flight = self.most_in_flight = 0

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """What comes back."""
        raise NotImplementedError

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(request.headers)
        body = await request.json()
        self.requests.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self.answer(request, body)
        finally:
            self.in_flight -= 1

    @asynccontextmanager
    async def served(self) -> AsyncIterator[Self]:
        app = web.Application()
        app.router.add_post(self.base + self.endpoint, self.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}{self.base}"
        yield self
        await runner.cleanup()
