"""Named implementations: `algorithm_table` has the names, decorators bring the functions."""

import difflib
from collections.abc import Callable, Collection, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps the names that a configuration may use to what they mean.

    Example:
        >>> POLICY_LOSSES: Registry[PolicyLoss] = Registry("policy loss", table.POLICY_LOSSES)
        >>> @POLICY_LOSSES.register("ppo")
        ... def ppo(inputs, params): ...
        >>> POLICY_LOSSES["ppo"]
    """

    def __init__(self, subject: str, names: Collection[str]) -> None:
        """Creates an empty registry.

        Args:
            subject: What the entries are, in the singular, for error messages ("policy loss").
            names: That it is to hold.
        """
        self.subject, self.names = subject, names
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that files its argument under `name` and hands it back unchanged.

        Raises:
            ValueError: `name` is taken, or has no row in the table.
        """
        if name not in self.names:
            raise ValueError(
                f"{self.subject} {name!r} must have a row in rlhf_ray/config/algorithm_table.py"
            )
        if name in self._entries:
            raise ValueError(f"{self.subject} {name!r} is registered twice")

        def add(entry: T) -> T:
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """Returns the entry called `name`.

        Raises:
            ValueError: There is none; the message lists the names and the nearest one.
        """
        if name in self._entries:
            return self._entries[name]
        nearest = difflib.get_close_matches(name, self._entries, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"{self.subject} must be one of {', '.join(self)}, got {name!r}{hint}")

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names in alphabetical order."""
        return iter(sorted(self._entries))
