"""What roles say of themselves: waiting by the driver's spans, engines' queues, memory."""

import time
from types import SimpleNamespace

import pytest
from fake_actors import RecordingActor

from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import ActorUsage, clock
from actors.engines.report import EngineLoad, engine_stat_logger
from actors.pool import usage as module
from actors.pool.clocks import Clocks
from actors.pool.usage import usage_of
from actors.ranks.rank import Rank
from rlhf_ray.metrics.names import check_names
from rlhf_ray.metrics.spans import Span, SpanLog, Taken
from rlhf_ray.metrics.usage import peak_memory_gb

SECOND = 10**9


class Time:
    """By the driver's clock, in seconds."""

    now = 100

    def __call__(self):
        return self.now * SECOND


@pytest.fixture
def now():
    return Time()


@pytest.fixture
def driver(now, monkeypatch):
    """The driver's spans; what it asks here is not among them."""
    log = SpanLog(clock_ns=now)
    monkeypatch.setattr(module, "PROCESS", log)
    return log


def spans_of(**seconds):
    """One span an operation, so long."""
    return [
        Span(operation=name, start_ns=0, end_ns=int(length * SECOND))
        for name, length in seconds.items()
    ]


def usage(spans=(), *, of_clock=None, stamp_ns=0, **figures):
    """What an actor answers."""
    taken = Taken(since_ns=0, until_ns=stamp_ns, ended=spans, running=(), num_dropped=0)
    return ActorUsage(figures=figures, node="n", clock=of_clock or clock(), taken=taken)


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


def role(name, answers):
    """Actors that answer this."""
    return RoleHandle(
        name, {f"{name}/{n}": RecordingActor(Rank, usage=one) for n, one in enumerate(answers)}
    )


async def ask(*roles, clocks=None):
    return await usage_of(roles, clocks or Clocks(own=clock()), timeout_s=1.0)


async def test_usage_has_the_hungriest_rank_and_all_engines(driver, now):
    load = {"queue_mean": 1.0, "queue_max": 3.0, "preemptions": 2.0}
    other = {"queue_mean": 2.0, "queue_max": 2.0, "preemptions": 1.0}
    roles = [
        role("policy", [usage(peak_gb=1.0), usage(peak_gb=1.5)]),
        role("rollout", [usage(peak_gb=2.0, **load), usage(peak_gb=1.0, **other)]),
    ]
    now.now += 6
    used = await ask(*roles)
    assert used.metrics == {
        "wait/policy": 6.0,
        "wait/rollout": 6.0,
        "memory/policy_peak_gb": 1.5,
        "memory/rollout_peak_gb": 2.0,
        "engine/queue_mean": 1.5,
        "engine/queue_max": 3.0,
        "engine/preemptions": 3.0,
    }
    check_names(used.metrics)


async def test_a_role_waits_where_nobody_waits_for_it(driver, now):
    with driver.span("score", asked="reward"), driver.span("update", asked="policy"):
        now.now += 2
    with driver.span("update", asked="policy"):
        now.now += 1
    now.now += 4
    used = await ask(role("reward", [usage(peak_gb=3.0)]))
    assert used.metrics == {"wait/reward": 5.0, "memory/reward_peak_gb": 3.0}


async def test_what_goes_on_over_a_report_is_no_waiting(driver, now):
    policy = role("policy", [usage(peak_gb=1.0)])
    with driver.span("update", asked="policy"):
        now.now += 2
        assert (await ask(policy)).metrics["wait/policy"] == 0
        now.now += 2
    now.now += 1
    assert (await ask(policy)).metrics["wait/policy"] == 1


async def test_the_time_of_moving_models_is_that_of_each_roles_slowest_rank(driver):
    used = await ask(
        role(
            "policy",
            [
                usage(spans_of(offload=0.5, reload=1.0, update=9.0), peak_gb=1.0),
                usage(spans_of(offload=0.75, reload=0.25), peak_gb=1.0),
            ],
        ),
        role("value", [usage(spans_of(offload=0.25), peak_gb=1.0)]),
        role("reward", [usage(peak_gb=1.0)]),
    )
    named = ("time", "engine")
    moves = {name: value for name, value in used.metrics.items() if name.startswith(named)}
    assert moves == {"time/offload": 1.0, "time/reload": 1.0}
    check_names(used.metrics)


async def test_spans_of_all_processes_are_in_the_drivers_time(driver):
    """Another machine's clock began elsewhere; this machine's is the driver's."""
    here = usage([Span(operation="update", start_ns=5, end_ns=7)], peak_gb=1.0)
    ahead_ns = 10**15
    there = usage(
        [Span(operation="update", start_ns=ahead_ns, end_ns=ahead_ns + 2)],
        of_clock="other",
        stamp_ns=ahead_ns + time.monotonic_ns(),
        peak_gb=1.0,
    )
    with driver.span("publish"):
        pass
    used = await ask(role("policy", [here, there]))
    [of_driver, first, second] = used.spans
    assert [(one.role, one.rank) for one in used.spans] == [
        ("driver", 0), ("policy", 0), ("policy", 1)
    ]  # fmt: skip
    assert [one.operation for one in of_driver.spans] == ["publish"]
    assert list(first.spans) == here.taken.ended
    [moved] = second.spans
    assert abs(moved.start_ns) < SECOND
    assert moved.end_ns - moved.start_ns == 2


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
