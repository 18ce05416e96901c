"""Where a side waits for its turn, in its own process."""

from __future__ import annotations

from multiprocessing.connection import Connection

# A turn of the other side, or its start with imports and warm-up.
WAIT_S = 600.0


class Enough(Exception):
    """No further turn is wanted."""


class Gate:
    """The end of a channel whose other end is a `Side`."""

    def __init__(self, descriptor: int) -> None:
        """Open it, by the number under which the process inherited it."""
        self.channel = Connection(descriptor)

    def pass_turn(self, *, num_tokens: int = 0) -> None:
        """Say that a turn is over and what it trained; wait for the next one.

        Raises:
            Enough: There is none.
            TimeoutError: Nothing was said.
        """
        try:
            self.channel.send(num_tokens)
            if not self.channel.poll(WAIT_S):
                raise TimeoutError(f"no turn within {WAIT_S:g} s")
            goes_on: bool = self.channel.recv()
        except (EOFError, BrokenPipeError):
            goes_on = False
        if not goes_on:
            raise Enough
