"""What roles say of themselves: waiting by an injected clock, engines' queues, memory."""

from types import SimpleNamespace

import pytest
from fake_actors import RecordingActor

from actors.cluster.role_handle import RoleHandle
from actors.cluster.turns import BusyClock
from actors.engines.report import EngineLoad, engine_stat_logger
from actors.pool.usage import usage_of
from actors.ranks.rank import Rank
from rlhf_ray.metrics.names import check_names
from rlhf_ray.metrics.usage import peak_memory_gb


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_only_time_without_a_call_is_idle(clock):
    busy = BusyClock(clock)
    clock.now += 3
    with busy.working():
        clock.now += 10
    clock.now += 4
    assert busy.take_idle_s() == 7
    assert busy.take_idle_s() == 0


def test_calls_that_overlap_count_once(clock):
    busy = BusyClock(clock)
    first, second = busy.working(), busy.working()
    first.__enter__()
    clock.now += 1
    second.__enter__()
    clock.now += 1
    first.__exit__(None, None, None)
    clock.now += 1
    second.__exit__(None, None, None)
    clock.now += 5
    assert busy.take_idle_s() == 5


def test_a_call_that_goes_on_over_a_report_is_no_idleness(clock):
    busy = BusyClock(clock)
    with busy.working():
        clock.now += 2
        assert busy.take_idle_s() == 0
        clock.now += 2
    assert busy.take_idle_s() == 0


def test_a_call_that_failed_is_over(clock):
    busy = BusyClock(clock)
    with pytest.raises(RuntimeError), busy.working():
        raise RuntimeError
    clock.now += 2
    assert busy.take_idle_s() == 2


def engine_step(running, waiting, *, deferred=0, cache=0.0):
    return SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_skipped_waiting_reqs=deferred,
        kv_cache_usage=cache,
    )


def test_an_engines_load_is_over_its_steps_since_the_last_report():
    load = EngineLoad()
    load.record(engine_step(2, 6, cache=0.5), SimpleNamespace(num_preempted_reqs=1))
    load.record(engine_step(4, 1, deferred=1, cache=0.25), None)
    load.record(None, SimpleNamespace(num_preempted_reqs=2))
    assert load.take() == {
        "running_mean": 3.0,
        "queue_mean": 4.0,
        "queue_max": 6.0,
        "kv_cache_share_max": 0.5,
        "preemptions": 3.0,
    }
    assert set(load.take().values()) == {0.0}


def role(name, clock, answers):
    """Actors that answer this."""
    handle = RoleHandle(
        name, {f"{name}/{n}": RecordingActor(Rank, usage=usage) for n, usage in enumerate(answers)}
    )
    handle.busy = BusyClock(clock)
    return handle


async def test_usage_has_the_hungriest_rank_and_all_engines(clock):
    load = {"queue_mean": 1.0, "queue_max": 3.0, "preemptions": 2.0}
    roles = [
        role("policy", clock, [{"peak_gb": 1.0}, {"peak_gb": 1.5}]),
        role(
            "rollout",
            clock,
            [
                {"peak_gb": 2.0, **load},
                {"peak_gb": 1.0, "queue_mean": 2.0, "queue_max": 2.0, "preemptions": 1.0},
            ],
        ),
    ]
    clock.now += 6
    usage = await usage_of({role.name: [role] for role in roles}, timeout_s=1.0)
    assert usage == {
        "wait/policy": 6.0,
        "wait/rollout": 6.0,
        "memory/policy_peak_gb": 1.5,
        "memory/rollout_peak_gb": 2.0,
        "engine/queue_mean": 1.5,
        "engine/queue_max": 3.0,
        "engine/preemptions": 3.0,
    }
    check_names(usage)


async def test_who_works_beside_a_role_counts_as_part_of_it(clock):
    ranks, worker = role("reward", clock, [{"peak_gb": 1.0}]), role("w", clock, [{"peak_gb": 3.0}])
    worker.busy = ranks.busy
    with worker.busy.working():
        clock.now += 2
    clock.now += 5
    usage = await usage_of({"reward": [ranks, worker]}, timeout_s=1.0)
    assert usage == {"wait/reward": 5.0, "memory/reward_peak_gb": 3.0}


async def test_the_time_of_moving_models_is_that_of_each_roles_slowest_rank(clock):
    roles = [
        role(
            "policy",
            clock,
            [
                {"peak_gb": 1.0, "offload_s": 0.5, "reload_s": 1.0},
                {"peak_gb": 1.0, "offload_s": 0.75, "reload_s": 0.25},
            ],
        ),
        role("value", clock, [{"peak_gb": 1.0, "offload_s": 0.25}]),
        role("reward", clock, [{"peak_gb": 1.0}]),
    ]
    usage = await usage_of({role.name: [role] for role in roles}, timeout_s=1.0)
    moves = {name: value for name, value in usage.items() if name.startswith(("time", "engine"))}
    assert moves == {"time/offload": 1.0, "time/reload": 1.0}
    check_names(usage)


def test_every_figure_of_an_engine_is_documented():
    check_names(f"engine/{key}" for key in EngineLoad().take())


def test_peak_memory_follows_what_is_taken():
    before = peak_memory_gb()
    taken = bytearray(int((before + 0.2) * 2**30))  # zeroed on demand: each page is touched below
    taken[::4096] = b"x" * len(taken[::4096])
    after = peak_memory_gb()
    assert before + 0.15 < after
    assert len(taken) / 2**30 < after


def test_vllms_metrics_come_without_an_observation_a_token(monkeypatch):
    recorded = []

    def record(self, scheduler_stats, iteration_stats, *more, **by):
        recorded.append((scheduler_stats, iteration_stats, more, by))

    logger = engine_stat_logger()
    monkeypatch.setattr(logger.__mro__[1], "record", record)
    steps = SimpleNamespace(inter_token_latencies_iter=[0.1] * 512, num_generation_tokens=512)
    for iteration_stats in (steps, None):
        object.__new__(logger).record("of the scheduler", iteration_stats, engine_idx=0)
    first, second = recorded
    assert first == ("of the scheduler", steps, (), {"engine_idx": 0})
    assert (steps.inter_token_latencies_iter, steps.num_generation_tokens) == ([], 512)
    assert second == ("of the scheduler", None, (), {"engine_idx": 0})
