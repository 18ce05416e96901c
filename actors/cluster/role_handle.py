"""A role's actors, and typed calls to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, overload

import ray

from actors.cluster.deadline import within
from actors.cluster.turns import Turns
from rlhf_ray.deadlines import DeadlineError
from rlhf_ray.errors import ActorDied, ResultsLost
from rlhf_ray.metrics.spans import span

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A")

# What an actor's method returns, whether it is a coroutine or not.
Answer: TypeAlias = T | Coroutine[Any, Any, T]

# In which an actor says that it is alive, from threads that do nothing else.
LIFE_S = 5.0
# In one turn: publication has two, after two to connect, and what frees the memory is one more.
MOST_CALLS = 5


def put(value: T) -> T:
    """Lay an argument of several calls into the object store once; an actor gets the value."""
    reference: Any = ray.put(value)
    return reference  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class _EachOwn:
    """An argument that differs from rank to rank."""

    by_rank: Sequence[Any]


def each_own(by_rank: Sequence[T]) -> T:
    """An argument of a call to all, of which each rank gets its own."""
    argument: Any = _EachOwn(by_rank=by_rank)
    return argument  # type: ignore[no-any-return]


class ComputingActor(Protocol):
    """An actor that computes in turn with those on the same GPU or the same cores."""

    def free_memory(self) -> None:
        """Give back what its passes took."""

    def use_threads(self, number: int) -> None:
        """Compute with so many from now on."""


@dataclass(frozen=True, kw_only=True)
class Hosted:
    """The model that a role was last asked to host, and when (seconds since the epoch)."""

    path: str
    since_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Call:
    """One that is waited for."""

    operation: str
    ranks: Sequence[int]
    since_s: float


async def _silent(actors: Sequence[Any]) -> list[int]:
    """The positions of actors that do not say that they are alive, though they can be asked."""
    asked = {
        position: asyncio.ensure_future(_answer_of(actor.health.remote()))
        for position, actor in enumerate(actors)
        if hasattr(actor, "health")
    }
    if not asked:
        return []
    await asyncio.wait(asked.values(), timeout=LIFE_S)
    silent = [position for position, answer in asked.items() if not answer.done()]
    for answer in asked.values():
        answer.cancel()
    await asyncio.gather(*asked.values(), return_exceptions=True)
    return silent


async def _answer_of(ref: Any) -> Any:
    return await ref


class Listener(Protocol):
    """Who hears at once what the pool's watch learns of a role's actors, by their ranks."""

    def answered(self, rank: int, answer: Any) -> None:
        """It is alive, and says this of itself."""

    def suspected(self, rank: int) -> None:
        """It has left questions open."""

    def lost(self, rank: int, why: str, *, age_s: float = 0.0) -> None:
        """It is dead, or hung and is killed, as a call met that was made so long ago."""

    def detached(self) -> None:
        """Its job is over: it hears no more, and has no actor replaced any more."""


class RoleHandle(Generic[A]):
    """The actors of one role in the order of their ranks; nobody else keeps them.

    Whoever works with a role keeps this handle, which finds the actors when it is called: after
    `replace` the next call goes to the new ones.

    Attributes:
        name: Of the role.
        names: Of the actors.
        spec: What they were started from.
        hosted: Their model; None where they host none that others may ask for.
        incarnation: Counts up whenever other actors come.
        gpu_turns: Which of the roles on the same GPUs computes; None where no other role does.
        core_turns: The same of each node where it computes on CPUs, and how many cores it takes.
        threads: Of each actor.
        away: Ranks of actors that are dead, and not replaced yet: a call to all leaves them out.
        listener: Who hears of their health; None where whoever calls them next does.
    """

    names: list[str]
    actors: list[Any]
    spec: Any
    hosted: Hosted | None
    gpu_turns: Turns | None = None
    core_turns: Sequence[tuple[Turns, int]] = ()
    threads: int = 1

    def __init__(self, name: str, actors: Mapping[str, Any] | None = None) -> None:
        """Take actors that were started, by their names."""
        self.name, self.incarnation = name, -1
        self.away: set[int] = set()
        self.listener: Listener | None = None
        self._open: list[_Call] = []
        self.replace(actors or {}, spec=None)

    def __len__(self) -> int:
        """How many actors."""
        return len(self.actors)

    def __getstate__(self) -> dict[str, Any]:
        """Another process, or a later one, begins with turns of its own."""
        own = {"gpu_turns", "core_turns", "_open", "away", "listener"}
        return {key: self.__dict__[key] for key in self.__dict__.keys() - own}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """See `__getstate__`."""
        self.__dict__.update(state, _open=[], away=set(), listener=None)

    def replace(self, actors: Mapping[str, Any], *, spec: Any) -> None:
        """Ask these from now on, which host nothing yet."""
        self.names, self.actors = list(actors), list(actors.values())
        self.spec, self.hosted = spec, None
        self.incarnation += 1

    def successor(self, actors: Mapping[str, Any]) -> RoleHandle[A]:
        """The role with others in place of some of its actors, for whoever makes them ready."""
        role: RoleHandle[A] = RoleHandle(self.name)
        role.replace({**dict(zip(self.names, self.actors, strict=True)), **actors}, spec=self.spec)
        role.incarnation = self.incarnation + 1
        role.threads = self.threads
        role.gpu_turns, role.core_turns = self.gpu_turns, self.core_turns
        return role

    def give_way_to(self, successor: RoleHandle[A], ranks: Sequence[int] | None = None) -> None:
        """Ask the actors of `successor` from now on, or those of some ranks; others stay."""
        actors = list(self.actors)
        for rank in range(len(successor)) if ranks is None else ranks:
            actors[rank] = successor.actors[rank]
        self.replace(dict(zip(self.names, actors, strict=True)), spec=successor.spec)
        self.hosted = successor.hosted

    def of(self, ranks: Sequence[int]) -> RoleHandle[A]:
        """Some of its actors, by the same names, for whoever asks only these."""
        role: RoleHandle[A] = RoleHandle(self.name)
        role.replace({self.names[rank]: self.actors[rank] for rank in ranks}, spec=self.spec)
        return role

    def detach(self) -> None:
        """Nobody looks after the actors any more; all of them are asked again."""
        self.away.clear()
        if self.listener is not None:
            self.listener.detached()
        self.listener = None

    @property
    def present(self) -> list[int]:
        """The ranks that can be asked."""
        return [rank for rank in range(len(self)) if rank not in self.away]

    @overload
    def call(
        self,
        method: Callable[Concatenate[A, P], Coroutine[Any, Any, T]],
        *,
        timeout_s: float,
        only: int | None = None,
    ) -> Callable[P, Coroutine[Any, Any, list[T]]]: ...

    @overload
    def call(
        self,
        method: Callable[Concatenate[A, P], Answer[T]],
        *,
        timeout_s: float,
        only: int | None = None,
    ) -> Callable[P, Coroutine[Any, Any, list[T]]]: ...

    def call(
        self, method: Callable[..., Any], *, timeout_s: float, only: int | None = None
    ) -> Callable[..., Coroutine[Any, Any, list[Any]]]:
        """A method of every actor, or of one rank: called with its arguments, it waits for answers.

        Those that are `away` are not asked.

        Raises:
            ActorDied: One died, or did not answer in time and was killed.
            RunError: One raised.
        """

        async def ask(*arguments: Any, **keywords: Any) -> list[Any]:
            asked = self.present if only is None else [only]
            if not asked:
                return []
            refs = [self._ask(method, rank, arguments, keywords) for rank in asked]
            return await self.answers(refs, method.__name__, timeout_s=timeout_s, ranks=asked)

        return ask

    def call_in_parts(
        self,
        method: Callable[Concatenate[A, P], tuple[T, *tuple[Any, ...]]],
        *,
        timeout_s: float,
        num_parts: int = 2,
    ) -> Callable[P, Coroutine[Any, Any, list[tuple[T, *tuple[Any, ...]]]]]:
        """As `call`, of a method that returns several things: all but the first stay where it is.

        What comes back is the first and references to the others.
        """

        async def ask(*arguments: P.args, **keywords: P.kwargs) -> list[tuple[T, *tuple[Any, ...]]]:
            parts = [
                self._ask(method, rank, arguments, keywords, num_returns=num_parts)
                for rank in range(len(self))
            ]
            firsts = [first for first, *_ in parts]
            answers = await self.answers(firsts, method.__name__, timeout_s=timeout_s)
            return [(answer, *others) for answer, (_, *others) in zip(answers, parts, strict=True)]

        return ask

    def _ask(
        self,
        method: Callable[..., Any],
        rank: int,
        arguments: Sequence[Any],
        keywords: Mapping[str, Any],
        *,
        num_returns: int = 1,
    ) -> Any:
        """One of the actors that are all called: see `each_own`."""
        own = [a.by_rank[rank] if isinstance(a, _EachOwn) else a for a in arguments]
        return self.start(method, rank, num_returns=num_returns)(*own, **keywords)

    def start(
        self, method: Callable[Concatenate[A, P], Any], rank: int, *, num_returns: int = 1
    ) -> Callable[P, Any]:
        """A method of one actor: called with its arguments, it returns references at once."""
        bound = getattr(self.actors[rank], method.__name__)
        if num_returns > 1:
            bound = bound.options(num_returns=num_returns)
        ask: Callable[P, Any] = bound.remote
        return ask

    async def answers(
        self,
        refs: Sequence[Any],
        operation: str,
        *,
        timeout_s: float,
        ranks: Sequence[int] | None = None,
    ) -> list[Any]:
        """Wait for what was started: by every actor, or by those of `ranks`.

        Who does not answer in time is killed, and so dead: nobody knows what it does.

        Raises:
            ActorDied: One is dead.
            ResultsLost: What one was to read is gone; those that had not answered are killed.
            RunError: One raised.
        """
        asked = list(range(len(self)) if ranks is None else ranks)
        actors, incarnation = self.actors, self.incarnation
        named = f"{self.name}.{operation}"
        call = _Call(operation=named, ranks=asked, since_s=time.monotonic())
        self._open.append(call)
        try:
            with span(operation, asked=self.name):
                return await within(
                    refs,
                    timeout_s=timeout_s,
                    actors=[self.names[rank] for rank in asked],
                    operation=named,
                    role=self.name,
                    indices=asked,
                )
        except DeadlineError as error:
            late = [asked[position] for position in error.late]
            silent = await _silent([actors[rank] for rank in late]) if len(late) > 1 else []
            for rank in late:
                ray.kill(actors[rank])
            named_rank, said = late[0], str(error)
            if 0 < len(silent) < len(late):  # the others wait for these in what they do together
                named_rank = late[silent[0]]
                names = ", ".join(self.names[late[position]] for position in silent)
                said = (
                    str(DeadlineError.of(named, names, age_s=timeout_s, timeout_s=timeout_s))
                    + ", nor any sign of life"
                )
            died = ActorDied.of(
                f"{said}: killed",
                role=self.name,
                index=named_rank,
                operation=named,
                age_s=timeout_s,
            )
            died.incarnation = incarnation
            raise died from error
        except ActorDied as died:
            if died.role == self.name:
                died.incarnation = incarnation
            raise
        except ResultsLost as lost:
            # They may wait in a collective, up to its deadline, for those that had nothing to read.
            for position in lost.late:
                ray.kill(actors[asked[position]])
            raise
        finally:
            self._open.remove(call)

    def open_calls(self, rank: int) -> str:
        """What an actor was asked and has not answered, in words; empty for nothing."""
        now_s = time.monotonic()
        calls = [call for call in self._open if rank in call.ranks]
        return "".join(f", {c.operation} for {now_s - c.since_s:.0f} s" for c in calls)

    @property
    def is_waited_for(self) -> bool:
        """Whether another role waits for the GPUs or cores that this one shares."""
        shared = [turns for turns, _ in self.core_turns]
        return any(turns.are_waited_for for turns in (self.gpu_turns, *shared) if turns)

    @asynccontextmanager
    async def turn(self, *, timeout_s: float) -> AsyncIterator[None]:
        """What is inside computes, no call longer than `timeout_s`.

        It is alone where GPUs are shared; on CPUs it has the cores that its threads need. The
        GPUs' memory of its passes is given back before the next one's turn: PyTorch would keep it
        for the process that had it.

        Raises:
            DeadlineError: The turns of the others did not end in time.
        """
        at_most_s = MOST_CALLS * timeout_s
        if self.gpu_turns is None:
            async with AsyncExitStack() as cores:
                for turns, number in self.core_turns:  # by their nodes: nobody waits in a circle
                    turn = turns.turn(self.name, at_most_s=at_most_s, takes=number)
                    await cores.enter_async_context(turn)
                yield
            return
        async with self.gpu_turns.turn(self.name, at_most_s=at_most_s):
            yield
            computing: RoleHandle[Any] = self
            await computing.call(ComputingActor.free_memory, timeout_s=timeout_s)()
