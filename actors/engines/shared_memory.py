"""Shared memory of processes that are killed: given back by one that nobody kills.

vLLM's processes talk through segments of hundreds of megabytes below /dev/shm. Python has a
process that unlinks them when all their users are gone, however these ended. But it is a child of
the actor, and Ray kills an actor together with its children and process group.
"""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import resource_tracker
from typing import Any

START_S = 60.0

# The parent ends at once, so that the tracker is nobody's child.
_DAEMON = """
import os
if os.fork():
    os._exit(0)
from multiprocessing.resource_tracker import main
main({fd})
"""


def outlive_actor() -> None:
    """Start the resource tracker of this process and its children where Ray does not see it."""
    tracker: Any = resource_tracker._resource_tracker
    if tracker._fd is not None:
        return
    read_end, write_end = os.pipe()
    try:
        subprocess.run(
            [sys.executable, "-c", _DAEMON.format(fd=read_end)],
            pass_fds=[read_end],
            start_new_session=True,
            check=True,
            timeout=START_S,
        )
    finally:
        os.close(read_end)
    tracker._fd = write_end
