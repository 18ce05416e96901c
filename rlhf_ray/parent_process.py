"""Processes that end with the one that started them, also where that one was killed."""

from __future__ import annotations

import os
import threading
import time

_WATCH_S = 1.0


def end_with_parent(parent: int) -> None:
    """End this process soon after its parent, also in the midst of its work.

    Not by the kernel's PR_SET_PDEATHSIG: that looks at the parent's thread, which may end before.

    Args:
        parent: The parent's process id.
    """
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(1)
