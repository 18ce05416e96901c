"""Tools of a server that speaks the Model Context Protocol, over standard streams or HTTP.

Source: https://modelcontextprotocol.io/specification, tools; the client is the protocol's own.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf_ray.deadlines import deadline
from rlhf_ray.environments.tool_calls import ToolParser
from rlhf_ray.environments.tools import Tool, ToolEnvironment, ToolError, by_name
from rlhf_ray.errors import ConfigError, GroupFailed, RlhfRayError
from rlhf_ray.process_tree import kept
from rlhf_ray.types import Prompt

if TYPE_CHECKING:
    from mcp import Client, StdioServerParameters

T = TypeVar("T")

# Until a server has said what tools it has, where nobody acts so far.
LIST_S = 60.0
# Until a session has ended, or its server is killed.
CLOSE_S = 10.0
# A listing comes in pages; a server that never ends it is no server.
_MOST_PAGES = 100


class McpTools(ToolEnvironment):
    """The tools of an MCP server, each rollout in a session of its own.

    What a tool reports as its error, and a call that is late, is a message to the policy. A server
    that ends, or cannot be reached, fails the group.
    """

    def __init__(
        self,
        *,
        command: Sequence[str] = (),
        url: str = "",
        parser: str | ToolParser = "hermes",
        call_timeout_s: float = 10.0,
    ) -> None:
        """Connect to nothing so far.

        Args:
            command: Starts a server that speaks over its standard streams, one for each rollout,
                with this process's environment variables.
            url: Of one that speaks streamable HTTP, for all rollouts.
            parser: As of any tools.
            call_timeout_s: For each call.

        Raises:
            ConfigError: There is neither a command nor a URL, or both; or no such parser.
        """
        super().__init__((), parser=parser, call_timeout_s=call_timeout_s)
        if bool(command) == bool(url):
            raise ConfigError(
                f"an MCP server needs either a command or a url, got {list(command)} and {url!r}"
            )
        if isinstance(command, str):
            raise ConfigError(f"command must be a list of a program and arguments, got {command!r}")
        self._command, self._url = [str(part) for part in command], url
        self._session: _Session | None = None

    @property
    def tools(self) -> list[dict[str, Any]]:
        """JSON schemas as the server has them; it is asked once, beside any event loop.

        Raises:
            ConfigError: It does not say.
        """
        if not self._tools:
            self._tools = by_name(_listed(self._server()))
        return super().tools

    async def reset(self, prompt: Prompt, seed: int) -> None:
        """Open a session.

        Raises:
            GroupFailed: The server ends, or cannot be reached.
        """
        longest_s = max(LIST_S, self._call_timeout_s)
        self._session = session = _Session(self._server(), timeout_s=longest_s)
        client = await session.open()
        self._tools = by_name(await session.ask(_tools_of(client, session)))

    async def close(self) -> None:
        """End the session, and a server that was started for it."""
        if self._session is not None:
            await self._session.close()

    def _server(self) -> str | StdioServerParameters:
        from mcp import StdioServerParameters

        if self._url:
            return self._url
        program, *arguments = self._command
        return StdioServerParameters(command=program, args=arguments, env=dict(os.environ))


class _Session:
    """A session with a server. One task opens and closes it, as the client's scopes want."""

    def __init__(self, server: str | StdioServerParameters, *, timeout_s: float) -> None:
        """Not open; for a running event loop. Each answer has this deadline, or its caller's."""
        self._what = server if isinstance(server, str) else server.command
        self._server, self._timeout_s = server, timeout_s
        loop = asyncio.get_running_loop()
        self._ends: asyncio.Future[None] = loop.create_future()
        self._opened: asyncio.Future[Client] = loop.create_future()
        self._held = asyncio.create_task(self._hold())

    async def open(self) -> Client:
        """The client, once the server has answered.

        Raises:
            GroupFailed: It does not.
        """
        return await self.ask(asyncio.shield(self._opened))

    async def ask(self, answer: Awaitable[T]) -> T:
        """What the server answers.

        Raises:
            DeadlineError: It does not in time.
            GroupFailed: It is gone.
            ToolError: It refuses.
        """
        from mcp import MCPError
        from mcp.types import CONNECTION_CLOSED

        asked = asyncio.ensure_future(answer)
        try:
            async with deadline(self._timeout_s, actor=self._what, operation="an answer"):
                await asyncio.wait([asked, self._held], return_when=asyncio.FIRST_COMPLETED)
            if self._held.done():
                raise self._gone(self._failure())
            return await asked
        except MCPError as error:
            if error.code == CONNECTION_CLOSED:
                raise self._gone(error) from error
            raise ToolError(str(error)) from error
        finally:
            asked.cancel()

    async def close(self) -> None:
        """End it."""
        if not self._ends.done():
            self._ends.set_result(None)
        if not self._opened.done():  # the server has not answered so far
            self._held.cancel()
        try:
            async with deadline(CLOSE_S, actor=self._what, operation="the end of its session"):
                await asyncio.wait([self._held])
        finally:
            self._held.cancel()
            self._opened.cancel()
        self._failure()  # whoever asked has heard of it

    def _failure(self) -> BaseException | None:
        """Of the task that held it, which is done."""
        held_task = self._held
        return None if held_task.cancelled() else held_task.exception()

    async def _hold(self) -> None:
        from mcp import Client

        server = self._server
        if not isinstance(server, str):
            program, *arguments = kept([server.command, *server.args])
            server = server.model_copy(update={"command": program, "args": arguments})
        async with Client(server, cache=None) as client:
            self._opened.set_result(client)
            await self._ends

    def _gone(self, error: BaseException | None) -> GroupFailed:
        return GroupFailed.of(
            f"the MCP server {self._what!r} ended, or cannot be reached: {_said(error)}",
            cause="crashed",
        )


async def _tools_of(client: Client, session: _Session) -> list[Tool]:
    found: list[Tool] = []
    cursor: str | None = None
    for _ in range(_MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            schema = {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": tool.input_schema,
            }
            found.append(
                Tool(
                    schema={"type": "function", "function": schema},
                    function=partial(_call, client, session, tool.name),
                )
            )
        cursor = page.next_cursor
        if cursor is None:
            return found
    raise ConfigError(f"an MCP server's list of tools has more than {_MOST_PAGES} pages")


async def _call(client: Client, session: _Session, tool: str, /, **arguments: Any) -> str:
    result = await session.ask(client.call_tool(tool, arguments))
    # What is no text (an image, say) is named: a policy reads texts.
    texts = [str(getattr(part, "text", f"[{part.type}]")) for part in result.content]
    if not texts and result.structured_content is not None:
        texts = [json.dumps(result.structured_content, ensure_ascii=False)]
    said = "\n".join(texts)
    if result.is_error:
        raise ToolError(said)
    return said


def _listed(server: str | StdioServerParameters) -> list[Tool]:
    """Ask a server in a thread with an event loop of its own: the caller may have one.

    Raises:
        ConfigError: It does not say.
    """
    found: list[list[Tool]] = []
    errors: list[BaseException] = []

    async def ask() -> list[Tool]:
        session = _Session(server, timeout_s=LIST_S)
        try:
            return await session.ask(_tools_of(await session.open(), session))
        finally:
            await session.close()

    def run() -> None:
        try:
            found.append(asyncio.run(ask()))
        # Whatever it is, the caller is told.
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="tools of an MCP server", daemon=True)
    thread.start()
    thread.join(2 * LIST_S + CLOSE_S)
    if not found:
        error = errors[0] if errors else None
        raise ConfigError(f"an MCP server must list its tools: {_said(error)}") from error
    return found[0]


def _said(error: BaseException | None) -> str:
    """The first cause in a group of them, in words."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is None:
        return "no answer"
    return str(error) if isinstance(error, RlhfRayError) else f"{type(error).__name__}: {error}"
