"""Waiting for several answers: what is left when one is late or fails."""

from __future__ import annotations

import asyncio
import pickle

import pytest
from ray.exceptions import (
    ObjectFetchTimedOutError,
    ObjectLostError,
    OwnerDiedError,
    RayActorError,
    RayTaskError,
    ReferenceCountingAssertionError,
)

from actors.cluster.deadline import within
from rlhf_ray.deadlines import DeadlineError
from rlhf_ray.errors import ActorDied, ConfigError, ResultsLost, RunError, StateLost


class Answer:
    """An awaitable that comes after a while, and notes when nobody waits for it any more."""

    def __init__(self, result: object = None, *, after_s: float = 0.0) -> None:
        self.result, self.after_s, self.given_up = result, after_s, False

    def __await__(self):
        return self._wait().__await__()

    async def _wait(self) -> object:
        try:
            await asyncio.sleep(self.after_s)
        except asyncio.CancelledError:
            self.given_up = True
            raise
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def asked(answers: list[Answer], *, timeout_s: float = 5.0):
    names = [f"job/policy/{n}" for n in range(len(answers))]
    return within(answers, timeout_s=timeout_s, actors=names, operation="policy.update")


async def test_answers_come_in_the_order_of_actors():
    assert await asked([Answer("a", after_s=0.05), Answer("b")]) == ["a", "b"]


async def test_who_is_late_is_named_and_not_waited_for_any_more():
    late = Answer(after_s=60)
    message = r"policy.update: no answer from job/policy/1 after 0 s \(deadline 0.05 s\)"
    with pytest.raises(DeadlineError, match=message):
        await asked([Answer(), late], timeout_s=0.05)
    await asyncio.sleep(0)
    assert late.given_up


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LookupError("no such row"), r"job/policy/0 failed after 0 s: LookupError: no such row"),
        (ConfigError("policy.model.path names nothing"), r"job/policy/0: policy.model.path names"),
    ],
)
async def test_the_first_failure_ends_the_wait_for_the_others(error, said):
    other = Answer(after_s=60)
    with pytest.raises(RunError, match=f"^policy.update: {said}"):
        await asked([Answer(error), other])
    await asyncio.sleep(0)
    assert other.given_up


def gone() -> RayActorError:
    return RayActorError(error_msg="The actor died unexpectedly before finishing this task.")


async def died(answers: list[Answer]) -> ActorDied:
    names = [f"job/policy/{n}" for n in range(2, 2 + len(answers))]
    with pytest.raises(ActorDied) as caught:
        await within(
            answers,
            timeout_s=5.0,
            actors=names,
            operation="policy.update",
            role="policy",
            indices=range(2, 2 + len(answers)),
        )
    return caught.value


async def test_a_death_says_whose_it_was():
    error = await died([Answer(after_s=60), Answer(gone())])
    assert str(error).startswith("policy.update: job/policy/3 died after 0 s: The actor died")
    assert (error.role, error.index, error.operation) == ("policy", 3, "policy.update")
    assert 0 <= error.age_s < 5


async def test_a_death_says_on_which_node_and_why():
    said = "The actor died unexpectedly.\n\tpid: 7\n\tip: 10.0.0.2\nThe actor's node has died."
    error = await died([Answer(RayActorError(error_msg=said))])
    assert str(error).endswith(
        "job/policy/2 died after 0 s: on 10.0.0.2: The actor's node has died."
    )


async def test_who_died_is_named_and_not_the_peers_that_it_left_in_a_collective():
    left = RuntimeError("Connection closed by peer [127.0.0.1]:4242")
    error = await died([Answer(left), Answer(gone(), after_s=0.1), Answer(left, after_s=0.2)])
    assert error.index == 3


async def test_the_death_of_whom_an_actor_waited_for_is_passed_on():
    replica = ActorDied.of(
        "publish version 3: rollout.update_weights: job/rollout/1 died after 2 s: gone",
        role="rollout",
        index=1,
        operation="publish version 3: rollout.update_weights",
        age_s=2.0,
    )
    arrived = pickle.loads(pickle.dumps(replica))
    error = await died([Answer(arrived), Answer(after_s=60)])
    assert str(error) == f"policy.update: job/policy/2: {replica}"
    assert (error.role, error.index, error.operation) == ("rollout", 1, replica.operation)


async def test_the_one_that_died_is_named_however_many_peers_fail_before_it():
    peers = [Answer(RuntimeError("connection closed"), after_s=0.02 * n) for n in range(1, 4)]
    dead = Answer(RayActorError(error_msg="killed"), after_s=0.2)
    with pytest.raises(ActorDied, match="job/policy/2 died") as caught:
        await asked([*peers[:2], dead, *peers[2:]])
    assert caught.value.index == 2


LOST = [
    kind("ab12", b"", "")
    for kind in (
        ObjectLostError,
        ObjectFetchTimedOutError,
        OwnerDiedError,
        ReferenceCountingAssertionError,
    )
]


def raised_in_actor(cause: Exception) -> Exception:
    """As Ray raises what an actor's method met."""
    error = RayTaskError("fetch", "traceback", cause, proctitle="", pid=1, ip="10.0.0.1")
    return error.as_instanceof_cause()


@pytest.mark.parametrize("lost", LOST, ids=lambda lost: type(lost).__name__)
@pytest.mark.parametrize("is_in_actor", [False, True])
async def test_what_lay_on_a_node_that_is_gone_is_a_loss_that_a_run_goes_back_for(
    lost, is_in_actor
):
    error = raised_in_actor(lost) if is_in_actor else lost
    message = rf"the object store: policy.update: job/policy/0: .* \({type(lost).__name__}\)"
    with pytest.raises(ResultsLost, match=message) as caught:
        await asked([Answer(error)])
    assert (caught.value.role, caught.value.late) == ("the object store", ())


async def test_a_loss_that_an_actor_itself_waited_for_is_passed_on():
    replica = StateLost.named("rollout", "none of them took the weights")
    with pytest.raises(StateLost, match=r"rollout: policy\.update: job/policy/0: ") as caught:
        await asked([Answer(pickle.loads(pickle.dumps(replica)))])
    assert caught.value.role == "rollout"


async def test_peers_of_one_with_nothing_to_read_are_named(monkeypatch):
    """They may wait for it in a collective."""
    monkeypatch.setattr("actors.cluster.deadline.DEATH_S", 0.05)
    with pytest.raises(ResultsLost) as caught:
        await asked([Answer("a"), Answer(LOST[0]), Answer(after_s=60)])
    assert caught.value.late == (2,)


async def test_a_death_counts_more_than_what_is_lost_with_it():
    dead = Answer(RayActorError(error_msg="killed"), after_s=0.1)
    with pytest.raises(ActorDied, match="job/policy/1 died"):
        await asked([Answer(LOST[0]), dead])
