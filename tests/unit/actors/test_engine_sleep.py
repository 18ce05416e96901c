"""Sleep mode of an engine: nobody samples from memory that holds no model.

Engine core and executor are vLLM's own; its workers, which need a GPU for that, only write down
what they are asked.
"""

from __future__ import annotations

from typing import Any

import pytest
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor.abstract import Executor

from actors.engines.sleep import EngineSleep
from rlhf_ray.errors import RunError


class Workers(Executor):
    """vLLM's executor over workers that are asked in vain."""

    def __init__(self) -> None:
        self.sleeping_tags: set[str] = set()
        self.asked: list[tuple[Any, ...]] = []

    def _init_executor(self) -> None: ...

    def check_health(self) -> None: ...

    def collective_rpc(self, method: Any, *args: Any, kwargs: Any = None, **more: Any) -> Any:
        self.asked.append((method, *(kwargs or {}).values()))


class Scheduler:
    """As far as an engine that sleeps asks it."""

    pause_state = PauseState.UNPAUSED

    def set_pause_state(self, state: PauseState) -> None:
        self.pause_state = state

    def finish_requests(self, *arguments: Any) -> None: ...


class Engine:
    """vLLM's engine core, as far as sleep mode goes; a call may fail."""

    def __init__(self) -> None:
        self.core: Any = object.__new__(EngineCore)
        self.core.model_executor, self.core.scheduler = Workers(), Scheduler()
        self.core._reset_caches = lambda: self.core.model_executor.asked.append(("forget",))
        self.error: Exception | None = None

    @property
    def asked(self) -> list[tuple[Any, ...]]:
        return [call for call in self.core.model_executor.asked if call[0] != "synchronize_device"]

    async def ask(self, method: str, *, timeout_s: float, **keywords: Any) -> Any:
        if self.error is not None:
            raise self.error
        return getattr(self.core, method)(**keywords)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def sleeping(engine: Engine) -> EngineSleep:
    return EngineSleep("rollout/0", engine.ask)


async def test_weights_come_back_before_the_cache(engine, sleeping):
    await sleeping.sleep(2, timeout_s=1.0)
    await sleeping.wake_up("weights", timeout_s=1.0)
    assert engine.core.is_scheduler_paused(), "there is no cache to sample into"
    sleeping.has_model = True  # as a publication leaves it
    await sleeping.wake_up("kv_cache", timeout_s=1.0)
    assert engine.asked == [
        ("forget",), ("sleep", 2), ("wake_up", ["weights"]), ("wake_up", ["kv_cache"])
    ]  # fmt: skip
    assert not engine.core.is_sleeping()
    sleeping.require_model("asked to sample")


async def test_at_level_1_weights_stay_a_model(engine, sleeping):
    await sleeping.sleep(1, timeout_s=1.0)
    await sleeping.wake_up(timeout_s=1.0)
    assert engine.asked == [("forget",), ("sleep", 1), ("wake_up", ["kv_cache", "weights"])]
    assert not engine.core.is_sleeping()
    sleeping.require_model("asked to sample")


async def test_what_is_awake_or_asleep_already_is_not_asked_again(engine, sleeping):
    await sleeping.wake_up(timeout_s=1.0)
    await sleeping.wake_up("weights", timeout_s=1.0)
    assert engine.asked == []
    await sleeping.sleep(1, timeout_s=1.0)
    await sleeping.sleep(2, timeout_s=1.0)
    assert engine.asked == [("forget",), ("sleep", 1)]
    await sleeping.wake_up("kv_cache", timeout_s=1.0)
    await sleeping.wake_up(timeout_s=1.0)
    assert engine.asked[2:] == [("wake_up", ["kv_cache"]), ("wake_up", ["weights"])]


@pytest.mark.parametrize("part", [None, "kv_cache"])
@pytest.mark.parametrize("awake", [False, True], ids=["asleep", "weights awake"])
async def test_an_engine_that_lost_its_weights_does_not_wake_up_to_sample(
    engine, sleeping, part, awake
):
    await sleeping.sleep(2, timeout_s=1.0)
    if awake:
        await sleeping.wake_up("weights", timeout_s=1.0)
    with pytest.raises(RunError, match=r"rollout/0 is woken up to sample without a model.*publish"):
        await sleeping.wake_up(part, timeout_s=1.0)
    assert "kv_cache" in sleeping.asleep
    with pytest.raises(RunError, match="asked to sample without a model"):
        sleeping.require_model("asked to sample")
    # Asleep once more it has no more than before.
    await sleeping.sleep(1, timeout_s=1.0)
    with pytest.raises(RunError, match="without a model"):
        await sleeping.wake_up(timeout_s=1.0)


async def test_an_engine_that_failed_to_sleep_has_no_model(engine, sleeping):
    engine.error = RunError("rollout/0 did not answer")
    with pytest.raises(RunError, match="did not answer"):
        await sleeping.sleep(2, timeout_s=1.0)
    engine.error = None
    with pytest.raises(RunError, match="without a model"):
        await sleeping.wake_up(timeout_s=1.0)


async def test_an_engine_that_does_not_wake_up_is_named(engine, sleeping):
    await sleeping.sleep(1, timeout_s=1.0)
    engine.core.model_executor.wake_up = lambda tags: None  # as where it finds nothing to wake
    with pytest.raises(RunError, match="rollout/0: vLLM must be awake after waking its kv_cache"):
        await sleeping.wake_up(timeout_s=1.0)
