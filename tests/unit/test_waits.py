"""Waits of the library end, and say who was late, with what, and for how long."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from rlhf_ray.deadlines import DeadlineError, deadline, in_daemon_thread, in_thread, side_by_side


async def test_what_is_late_is_named_with_operation_and_age():
    with pytest.raises(DeadlineError) as caught:
        async with deadline(0.05, actor="job/rollout/1", operation="sleep"):
            await asyncio.sleep(60)
    assert str(caught.value) == ("sleep: no answer from job/rollout/1 after 0 s (deadline 0.05 s)")


async def test_what_is_in_time_is_left_alone():
    async with deadline(60, actor="a", operation="b"):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError, match="of something inside"):
        async with deadline(60, actor="a", operation="b"):
            raise TimeoutError("of something inside")
    with pytest.raises(asyncio.CancelledError):
        async with deadline(60, actor="a", operation="b"):
            raise asyncio.CancelledError


async def test_a_call_runs_beside_the_event_loop():
    loops_thread = threading.get_ident()

    def call() -> int:
        assert threading.get_ident() != loops_thread
        return 7

    assert await in_thread(call, timeout_s=5, actor="the driver", operation="counting") == 7


async def test_a_call_that_never_returns_is_left_behind():
    release, started_s = threading.Event(), time.monotonic()
    threads = set(threading.enumerate())
    with pytest.raises(DeadlineError, match="counting: no answer from the driver after 0 s"):
        await in_thread(
            lambda: release.wait(60), timeout_s=0.05, actor="the driver", operation="counting"
        )
    assert time.monotonic() - started_s < 30
    [left] = set(threading.enumerate()) - threads
    assert left.daemon, "it must not keep the process from ending"
    release.set()


@pytest.mark.parametrize("error", [LookupError("none"), StopIteration(), SystemExit(3)])
async def test_what_a_call_raises_is_raised_here(error):
    def call() -> None:
        raise error

    if isinstance(error, StopIteration):  # a coroutine must not raise it
        with pytest.raises(RuntimeError, match="coroutine raised StopIteration"):
            await in_daemon_thread(call, name="test")
        return
    with pytest.raises(type(error)) as caught:
        await in_daemon_thread(call, name="test")
    assert caught.value is error


async def test_the_first_that_fails_ends_those_beside_it():
    ended: list[str] = []

    async def long(name: str) -> str:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)  # what it must still do is done
            ended.append(name)
        return name

    async def failing() -> str:
        await asyncio.sleep(0)
        raise error from cause

    error, cause = LookupError("none"), KeyError("x")
    future = asyncio.ensure_future(long("b"))
    with pytest.raises(LookupError) as caught:
        await side_by_side([long("a"), failing(), future])
    assert (caught.value, error.__cause__) == (error, cause)
    assert not isinstance(error.__context__, BaseExceptionGroup)
    assert sorted(ended) == ["a", "b"]
    assert future.cancelled()


async def test_what_is_waited_for_together_comes_in_its_order():
    assert await side_by_side([asyncio.sleep(0.01, "slow"), asyncio.sleep(0, "quick")]) == [
        "slow", "quick"
    ]  # fmt: skip
    assert await side_by_side([]) == []


async def test_a_cancelled_wait_cancels_all_that_it_waits_for():
    futures = [asyncio.get_running_loop().create_future() for _ in range(2)]
    waiting = asyncio.ensure_future(side_by_side(futures))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert all(future.cancelled() for future in futures)
