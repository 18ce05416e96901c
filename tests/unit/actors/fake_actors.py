"""Actors in this process: plain objects whose methods are called as those of Ray's handles are."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from actors.cluster.role_handle import ComputingActor
from actors.cluster.role_spec import RoleActor
from actors.cluster.run_files import ExportingActor
from actors.engines.rollout import RolloutReplica
from actors.pool.models import HostingActor
from actors.ranks.hosting import HostingRank
from actors.ranks.rank import Rank
from actors.weights.sync_spec import PublishedReplica


class FakeMethod:
    """One of an actor; it runs once its answer is waited for.

    Called for several references, it has all but the first stand for nothing.
    """

    def __init__(self, method: Callable[..., Any], *, num_returns: int = 1) -> None:
        self.method, self.num_returns = method, num_returns

    def options(self, *, num_returns: int) -> FakeMethod:
        return FakeMethod(self.method, num_returns=num_returns)

    def remote(self, *arguments: Any, **keywords: Any) -> Any:
        answer = self._answer(arguments, keywords)
        return answer if self.num_returns == 1 else (answer, *[None] * (self.num_returns - 1))

    async def _answer(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        answer = self.method(*arguments, **keywords)
        return await answer if inspect.isawaitable(answer) else answer


class FakeHandle:
    """Ray's handle of `actor`."""

    def __init__(self, actor: object) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> FakeMethod:
        return FakeMethod(getattr(self._actor, name))


class RecordingActor:
    """The handle of an actor of these classes, whose methods only write down that they are asked.

    It has no methods but those of the classes, and these take no other arguments.

    Attributes:
        asked: Method and arguments of each call.
        answers: By method: an answer, an error, or what is called for the answer; else it is None.
    """

    def __init__(self, *classes: type[RoleActor], **answers: Any) -> None:
        self.classes, self.answers = classes, answers
        self.asked: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> FakeMethod:
        of_class = next((getattr(cls, name) for cls in self.classes if hasattr(cls, name)), None)
        if of_class is None:
            raise AttributeError(f"{name} must be a method of {self.classes}")
        return FakeMethod(partial(self._answer, name, inspect.signature(of_class)))

    def note(self, name: str, *arguments: Any) -> None:
        self.asked.append((name, *arguments))

    def _answer(self, name: str, signature: inspect.Signature, *arguments: Any) -> Any:
        signature.bind(self, *arguments)
        self.note(name, *arguments)
        answer = self.answers.get(name)
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer


class ActorOfRole(RecordingActor):
    """One of a role; the first writes down what all are asked, behind the role's name."""

    def __init__(
        self,
        role: str,
        rank: int,
        cls: type[RoleActor],
        asked: list[tuple[Any, ...]],
        **answers: Any,
    ) -> None:
        super().__init__(cls, **answers)
        self.role, self.rank, self.asked = role, rank, asked

    def note(self, name: str, *arguments: Any) -> None:
        if self.rank == 0:
            super().note(self.role, name, *arguments)


class ComputingRank:
    """Says when a pass begins and when it is done.

    Attributes:
        seen: What happened, in order; also to other ranks.
    """

    def __init__(self, role: str, seen: list[str], *, pass_s: float) -> None:
        self.role, self.seen, self.pass_s = role, seen, pass_s

    async def update(self) -> str:
        self.seen.append(f"{self.role} begins")
        await asyncio.sleep(self.pass_s)
        self.seen.append(f"{self.role} ends")
        return self.role

    def fail(self) -> None:
        raise ValueError("no such model")

    def use_threads(self, number: int) -> None:
        self.seen.append(f"{self.role} has {number}")

    def free_memory(self) -> None:
        self.seen.append(f"{self.role} frees")


def get(refs: Sequence[Any], *, timeout_s: float, **_: Any) -> list[Any]:
    """Stands for `actors.cluster.deadline.get`."""
    return [asyncio.run(ref) for ref in refs]


def _(fake: ComputingRank) -> ComputingActor:
    return fake


# The classes that `RecordingActor` stands for are held to the Protocols as well.
def _(real: Rank) -> ComputingActor:
    return real


def _(real: Rank) -> RoleActor:
    return real


def _(real: HostingRank) -> HostingActor:
    return real


def _(real: HostingRank) -> ExportingActor:
    return real


def _(real: RolloutReplica) -> PublishedReplica:
    return real
