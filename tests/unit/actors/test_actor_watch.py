"""An actor that hangs is killed, with a line that says which one; one that is slow is not."""

from __future__ import annotations

from typing import Any

import pytest
from fake_actors import FakeHandle
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayActorError

from actors.cluster.role_handle import RoleHandle
from actors.pool import watch
from actors.pool.health import Health
from actors.pool.pool import Pool
from actors.pool.watch import Watch
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.config.placement import GroupConfig


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Actor:
    """Answers where `state` says so."""

    state = "answers"

    def __init__(self) -> None:
        self.num_asked = 0

    def health(self) -> None:
        self.num_asked += 1


class Method:
    def __init__(self, actor: Actor) -> None:
        self.actor = actor

    def remote(self) -> Actor:
        self.actor.health()
        return self.actor


class Handle:
    def __init__(self, actor: Actor) -> None:
        self.actor, self.health = actor, Method(actor)


@pytest.fixture
def killed(monkeypatch) -> list[Any]:
    """Ray's part: a question is the actor that it was put to."""
    killed: list[Any] = []

    def get(refs, timeout):
        if refs[0].state == "dead":
            raise RayActorError(error_msg="dead")
        return [refs[0].state]

    def wait(refs, **_):
        return [ref for ref in refs if ref.state != "hangs"], []

    monkeypatch.setattr(watch.ray, "get", get)
    monkeypatch.setattr(watch.ray, "wait", wait)
    monkeypatch.setattr(watch.ray, "kill", lambda handle: killed.append(handle.actor))
    return killed


def watched(*actors: Actor) -> tuple[Watch, Clock, RoleHandle]:
    pool, clock = Pool("pool", TimeoutConfig(hang_s=20.0)), Clock()
    role = RoleHandle("policy", {f"pool/policy/{n}": Handle(a) for n, a in enumerate(actors)})
    pool.state.roles["policy"] = role
    return Watch(pool, clock=clock), clock, role


def look(watch: Watch, clock: Clock, seconds: float) -> None:
    for _ in range(int(seconds / 5)):
        clock.now_s += 5.0
        watch.look()


def test_the_one_that_hangs_is_killed_once_and_named(killed, caplog):
    well, stopped = Actor(), Actor()
    watch, clock, _ = watched(well, stopped)
    watch.look()
    look(watch, clock, 50)
    assert not killed
    stopped.state = "hangs"
    look(watch, clock, 20)
    assert not killed
    look(watch, clock, 60)
    assert killed == [stopped]
    assert caplog.text.count("pool/policy/1 has not answered for 25 s") == 1
    assert well.num_asked > 20


def test_one_that_starts_may_take_longer(killed):
    starting = Actor()
    starting.state = "hangs"
    watch, clock, _ = watched(starting)
    look(watch, clock, 600)
    starting.state = "answers"
    look(watch, clock, 50)
    assert not killed
    starting.state = "hangs"
    look(watch, clock, 50)
    assert killed == [starting]


def test_the_dead_are_left_to_those_that_need_them_and_who_comes_after_is_asked(killed):
    dead, after = Actor(), Actor()
    dead.state = "dead"
    watch, clock, role = watched(dead)
    look(watch, clock, 100)
    assert (dead.num_asked, killed) == (1, [])
    role.give_way_to(role.successor({"pool/policy/0": Handle(after)}))
    look(watch, clock, 50)
    assert after.num_asked > 5


def test_it_is_said_what_the_dead_one_was_asked_and_where_it_was(killed, caplog, monkeypatch):
    stopped = Actor()
    watch, clock, role = watched(stopped)
    watch.look()
    watch.look()
    watch.pool.state.groups["policy"] = GroupConfig()
    place = type("Place", (), {"address": "10.0.0.9"})
    watch.pool.state.places["policy"] = [place]
    monkeypatch.setattr(role, "open_calls", lambda rank: f", policy.update for {rank + 7} s")
    stopped.state = "hangs"
    look(watch, clock, 30)
    assert (
        "pool/policy/0 on 10.0.0.9 has not answered for 25 s (timeouts.hang_s), policy.update for "
        "7 s: killed"
    ) in caplog.text


async def test_what_is_waited_for_is_known_of_the_one_that_was_asked():
    seen = []

    class Rank:
        def update(self):
            seen.extend(role.open_calls(rank) for rank in range(2))

    role = RoleHandle("policy", {f"p/{n}": FakeHandle(Rank()) for n in range(2)})
    await role.call(Rank.update, timeout_s=5, only=1)()
    assert seen == ["", ", policy.update for 0 s"]
    assert role.open_calls(1) == ""


@given(events=st.lists(st.tuples(st.sampled_from(["ask", "answer", "look"]), st.floats(0, 9))))
def test_only_an_open_question_of_one_that_has_started_grows_old(events):
    clock = Clock()
    health = Health(hang_s=5.0, suspect_s=2.0, clock=clock)
    has_answered, since_s = False, None
    for event, seconds in events:
        clock.now_s += seconds
        if event == "ask":
            health.asked()
            since_s = clock.now_s
        elif event == "answer":
            health.answered()
            has_answered, since_s = True, None
        expected = has_answered and since_s is not None and clock.now_s - since_s > 5.0
        assert health.hangs == expected
        assert health.is_suspect or not health.hangs


class Listener:
    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.ages_s: list[float] = []

    def answered(self, rank: int, answer: Any) -> None:
        self.heard.append(("answered", rank))

    def suspected(self, rank: int) -> None:
        self.heard.append(("suspected", rank))

    def lost(self, rank: int, why: str, *, age_s: float = 0.0) -> None:
        self.heard.append(("lost", rank, why))
        self.ages_s.append(age_s)

    def detached(self) -> None:
        self.heard.append(("detached",))


def test_whoever_listens_hears_of_suspects_and_of_deaths_at_once(killed):
    well, stopped, dead = Actor(), Actor(), Actor()
    watch, clock, role = watched(well, stopped, dead)
    watch.look()
    role.listener = listener = Listener()
    look(watch, clock, 5)  # what they said before anybody listened is of that time
    assert listener.heard == []
    look(watch, clock, 5)
    assert listener.heard == [("answered", rank) for rank in range(3)]
    stopped.state, dead.state = "hangs", "dead"
    listener.heard.clear()
    look(watch, clock, 10)
    assert ("lost", 2, "dead") in listener.heard
    assert ("suspected", 1) not in listener.heard
    look(watch, clock, 5)
    assert ("suspected", 1) in listener.heard
    assert not killed
    look(watch, clock, 20)
    assert killed == [stopped]
    [(_, _, why)] = [heard for heard in listener.heard if heard[:2] == ("lost", 1)]
    assert why == "no answer for 25 s: killed"
    assert listener.ages_s[-1] == 25.0, "it has not served meanwhile"
    assert ("answered", 0) in listener.heard
