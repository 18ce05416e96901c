"""Progress of something that takes a while, on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_QUIET_S = 2.0


def shown(items: Iterable[T], what: str, *, count: Callable[[T], int]) -> Iterator[T]:
    """The same items; once they take more than two seconds, a terminal shows how many came.

    Args:
        items: What takes a while.
        what: It is, in words.
        count: How many an item stands for.
    """
    import rich
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    consoles = (rich.get_console(), Console(stderr=True))
    console = next((console for console in consoles if console.is_terminal), None)
    if console is None:
        yield from items
        return
    count_of = TextColumn("{task.completed:,.0f} rows")  # of how many is not known
    columns = (TextColumn("{task.description}"), count_of, TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task(what, total=None)
    began = time.monotonic()
    running = False
    try:
        for item in items:
            if not running and time.monotonic() - began > _QUIET_S:
                progress.start()
                running = True
            progress.advance(task, count(item))
            yield item
    finally:
        progress.stop()
