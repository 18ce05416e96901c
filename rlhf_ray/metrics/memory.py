"""How much memory a process has taken at most."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def peak_memory_gb() -> float:
    """Since the process began, in GB of 2**30 bytes: of its GPU where it uses one, else of its RAM.

    On a GPU it is what torch's tensors took. Of RAM it is the resident set, libraries included.
    """
    torch = sys.modules.get("torch")  # a process without torch has no tensors on a GPU
    if torch is not None and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    [kilobytes] = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kilobytes) / 2**20
