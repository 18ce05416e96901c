"""A server of tools for tests: over standard streams, or with a port over HTTP."""

import asyncio
import os
import sys

from mcp.server.mcpserver import MCPServer

server = MCPServer("numbers")
kept: list[str] = []


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def keep(word: str) -> list[str]:
    """Keep a word, and give all that are kept."""
    kept.append(word)
    return kept


@server.tool()
def fails() -> None:
    """Fail."""
    raise ValueError("no luck")


@server.tool()
async def hangs() -> None:
    """Never answer."""
    await asyncio.sleep(600)


@server.tool()
def dies() -> None:
    """End the server."""
    os._exit(3)


if __name__ == "__main__":
    if sys.argv[1:]:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
