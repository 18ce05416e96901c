"""Calls that any rank of a role can answer alone: each goes to one that is free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from actors.cluster.role_handle import MOST_CALLS, RoleHandle
from actors.cluster.turns import Turns

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")

# Roles that may share GPUs or cores: policy, reference, reward, value. Each may have its turn
# before ours.
_MOST_TURNS = 4


class FreeRanks(Generic[A]):
    """One call a rank at a time, first come first served.

    Where the role shares its GPUs or cores, calls side by side are in one turn of the role. The
    next ones join it as ranks get free, unless another role waits: then it ends with the calls that
    are in it, and those that come later are in the role's next turn.
    """

    def __init__(self, ranks: RoleHandle[A]) -> None:
        """No rank is asked anything."""
        self.ranks = ranks
        self._free = Turns(len(ranks), on=f"the ranks of {ranks.name}")
        self._joins = Turns(on=f"a turn of {ranks.name}")
        self._turn: AbstractAsyncContextManager[None] | None = None
        self._num_in_turn = 0

    def call(
        self, method: Callable[Concatenate[A, P], T], *, timeout_s: float
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        """A method of a free rank: called with its arguments, it waits for one and its answer.

        The rank has `timeout_s` once it is asked.

        Raises:
            ActorDied: It died.
            DeadlineError: It did not answer in time, or those before did not.
            RunError: It raised.
        """
        at_most_s = (_MOST_TURNS * MOST_CALLS + 1) * timeout_s

        async def ask(*arguments: P.args, **keywords: P.kwargs) -> T:
            is_free = self._free.turn(method.__name__, at_most_s=at_most_s)
            # The turn is left once the rank is free: whoever has it next may join.
            async with AsyncExitStack() as turn, is_free as rank:
                await turn.enter_async_context(self._in_turn(timeout_s))
                ask_rank = self.ranks.call(method, timeout_s=timeout_s, only=rank)
                [answer] = await ask_rank(*arguments, **keywords)
            return answer

        return ask

    @asynccontextmanager
    async def _in_turn(self, timeout_s: float) -> AsyncIterator[None]:
        at_most_s = _MOST_TURNS * MOST_CALLS * timeout_s
        async with self._joins.turn(self.ranks.name, at_most_s=at_most_s):
            if not self._num_in_turn or self.ranks.is_waited_for:
                turn = self.ranks.turn(timeout_s=timeout_s)
                await turn.__aenter__()
                self._turn = turn
            self._num_in_turn += 1
        failure: BaseException | None = None
        try:
            yield
            await asyncio.sleep(0)  # whoever has the rank now joins
        except BaseException as error:
            failure = error
            raise
        finally:
            self._num_in_turn -= 1
            if not self._num_in_turn:
                assert self._turn is not None
                trace = failure.__traceback__ if failure else None
                await self._turn.__aexit__(type(failure) if failure else None, failure, trace)
