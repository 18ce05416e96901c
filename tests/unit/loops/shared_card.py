"""One GPU that all roles share, as an account of who is on it; roles that move as ranks do."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar, cast

from fakes import Company, FakeReference, FakeValue

from rlhf_ray.roles.groups import GenerationRequest, RolloutGroup
from rlhf_ray.roles.protocols import EnginePart, Roles, RolloutEngine, SleepLevel
from rlhf_ray.roles.reports import Publication

R = TypeVar("R")

READS = ("logprobs", "values", "score", "publish")
TRAINS = ("update", "save", "restore")


class Card:
    """What is on the card: names of parts, `policy.weights` and the like; at first nothing.

    Attributes:
        moves: Each change, in order.
    """

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.moves: list[str] = []

    def take(self, part: str) -> None:
        if part in self.held:
            return
        self.held.add(part)
        self.moves.append(f"+{part}")
        others = {name for name in self.held if not name.startswith("rollout.")}
        if "rollout.kv_cache" in self.held:
            assert not others, f"the cache takes all of the card, and {others} are there"
        if "rollout.weights" in self.held:
            assert others <= {"policy.weights"}, f"{others} are beside the engine's weights"
        states = {name for name in others if name.endswith(".states")}
        assert len(states) < 2, f"{states} do not fit side by side"

    def leave(self, part: str) -> None:
        if part in self.held:
            self.held.remove(part)
            self.moves.append(f"-{part}")


class Engines:
    """The rollout role, which answers only with a model, and awake; at first it sleeps without."""

    def __init__(self, company: Company, card: Card) -> None:
        self.company, self.card, self.has_model = company, card, False

    async def generate(
        self, requests: Sequence[GenerationRequest], *, together: bool = True
    ) -> list[Awaitable[RolloutGroup]]:
        await self.wake_up()
        return await self.company.generate(requests, together=together)

    async def joining(self) -> None:
        await self.company.joining()

    async def sleep(self, level: SleepLevel) -> None:
        if "rollout.weights" in self.card.held:
            self.has_model &= level == 1
            self.card.moves.append(f"sleep {level}")
        self.card.leave("rollout.weights")
        self.card.leave("rollout.kv_cache")

    async def wake_up(self, part: EnginePart | None = None) -> None:
        if part != "weights":
            assert self.has_model, "an engine wakes up to sample from nothing"
        for name in [part] if part else ["weights", "kv_cache"]:
            self.card.take(f"rollout.{name}")
        self.company.asleep = False


class Guest:
    """A role on the card: what it does brings its weights, training its states as well."""

    def __init__(self, name: str, role: Any, card: Card, engines: Engines) -> None:
        self.name, self.role, self.card, self.engines = name, role, card, engines

    def __getattr__(self, method: str) -> Any:
        asked = getattr(self.role, method)

        async def answer(*arguments: Any, **keywords: Any) -> Any:
            if method in READS + TRAINS:
                self.card.take(f"{self.name}.weights")
            if method in TRAINS:
                self.card.take(f"{self.name}.states")
            answered = await asked(*arguments, **keywords)
            if method == "update":
                self.card.leave(f"{self.name}.states")
            if method in ("save", "restore"):
                await self.offload()
            return answered

        return answer

    async def publish(self, version: int, *, exactly: bool = False) -> None:
        assert "rollout.weights" in self.card.held, "an engine that sleeps takes no weights"
        self.card.take(f"{self.name}.weights")
        await self.role.publish(version)
        self.engines.has_model = True

    async def compare(self) -> Publication:
        assert "rollout.kv_cache" in self.card.held, "the engines score the probe as well"
        compared: Publication = await self.role.compare()
        return compared

    async def offload(self) -> None:
        self.card.leave(f"{self.name}.states")
        self.card.leave(f"{self.name}.weights")


def roles_on(card: Card, company: Company) -> Roles:
    """All of a job's roles on one card; the job has a reward model."""
    engines = Engines(company, card)

    def guest(name: str, role: R) -> R:
        return cast(R, Guest(name, role, card, engines))

    return Roles(
        rollout=engines,
        policy=guest("policy", company),
        reward=guest("reward", company),
        experience=company,
        store=company,
        reference=guest("reference", FakeReference(company)),
        value=guest("value", FakeValue(company)),
    )


def _(fake: Engines) -> RolloutEngine:
    return fake
