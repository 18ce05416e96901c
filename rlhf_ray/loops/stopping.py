"""A run that is asked to end does so after the step that it trains, with a checkpoint.

Where it only waits for rollouts it ends at once: what is decided is in the journal, and a resumed
run samples the others again.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from rlhf_ray.errors import RlhfRayError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Stop:
    """Whether a run was asked to end.

    Attributes:
        asked: It was, and is about to.
    """

    def __init__(self, *, grace_s: float = math.inf) -> None:
        """Who is asked has `grace_s` seconds; then it is interrupted."""
        self.grace_s, self.asked = grace_s, False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def ask(self) -> str:
        """Ask it, from a signal's handler or any thread.

        Returns:
            What follows, in words; empty where nobody heeds it, or it was asked before.
        """
        if self._loop is None or self.asked:
            return ""
        self.asked = True
        self._loop.call_soon_threadsafe(self._begin)
        if self._waiting is None:
            return "the run ends after this step, which is saved"
        return "the run ends without waiting for rollouts; what was trained is saved"

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Steps that look at `asked`, one by one.

        Raises:
            KeyboardInterrupt: It was asked, and has ended, be it by an error.
        """
        self._loop = asyncio.get_running_loop()
        try:
            yield
        except RlhfRayError as error:
            if not self.asked:
                raise
            logger.warning("the run was to end, and failed before: %s", error)
        finally:
            self._loop = None
            if self._timer is not None:
                self._timer.cancel()
        if self.asked:
            raise KeyboardInterrupt

    async def or_asked(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What comes of `work`, which is cancelled where it is asked meanwhile; None then."""
        if self.asked:
            work.close()
            return None
        self._waiting = task = asyncio.create_task(work)
        try:
            return await task
        except asyncio.CancelledError:
            this: asyncio.Task[Any] | None = asyncio.current_task()
            if not self.asked or (this is not None and this.cancelling()):
                raise
            return None
        finally:
            self._waiting = None

    def _begin(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        if self._loop is not None and math.isfinite(self.grace_s):
            self._timer = self._loop.call_later(self.grace_s, self._expire)

    def _expire(self) -> NoReturn:
        logger.warning("the step is not done after %g s: the run ends now", self.grace_s)
        raise KeyboardInterrupt
