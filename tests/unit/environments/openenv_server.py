"""A server that speaks OpenEnv's protocol, for tests: a number is guessed, in two sessions at most.

The messages are those that the server of `openenv-core` 0.3.0 gave to the same questions.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from aiohttp import WSMsgType, web

MOST_SESSIONS = 2
SCHEMA = {
    "action": {
        "properties": {"guess": {"type": "integer"}, "metadata": {"type": "object"}},
        "required": ["guess"],
    },
    "observation": {},
    "state": {},
}
num_sessions = 0


def observed(hint: str, *, reward: float | None = None, done: bool = False) -> dict[str, Any]:
    return {
        "type": "observation",
        "data": {"observation": {"hint": hint, "tries": 1}, "reward": reward, "done": done},
    }


def failed(code: str, message: str, **more: Any) -> dict[str, Any]:
    return {"type": "error", "data": {"message": message, "code": code, **more}}


def answered(state: dict[str, int], message: dict[str, Any]) -> dict[str, Any]:
    data = message["data"]
    if message["type"] == "reset":
        state["number"] = data["seed"] % 10 + data.get("shift", 0)
        return observed(f"seed {data['seed']}", done=data["seed"] == 999)
    guess, number = data.get("guess"), state["number"]
    if not isinstance(guess, int):
        fault = {"type": "int_type", "loc": ["guess"], "msg": "Input should be a valid integer"}
        return failed("VALIDATION_ERROR", "Invalid message", errors=[fault])
    if guess == 98:
        return failed("EXECUTION_ERROR", "no luck")
    if guess == 97:
        return observed("unsaid")
    if guess == 99:
        os._exit(3)
    if guess == number:
        return observed("right", reward=1.0, done=True)
    return observed("higher" if guess < number else "lower", reward=-0.1)


async def session(request: web.Request) -> web.WebSocketResponse:
    global num_sessions
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    if num_sessions == MOST_SESSIONS:
        await socket.send_json(failed("CAPACITY_REACHED", "Server at capacity"))
        await socket.close()
        return socket
    num_sessions += 1
    state: dict[str, int] = {}
    try:
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_json(answered(state, json.loads(message.data)))
    finally:
        num_sessions -= 1
    return socket


async def schema(_: web.Request) -> web.Response:
    return web.json_response(SCHEMA)


if __name__ == "__main__":
    application = web.Application()
    application.router.add_get("/schema", schema)
    application.router.add_get("/ws", session)
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), print=None)
