"""Whether DeepSpeed can offload to NVMe drives here: what it does so with is built on libaio."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
from pathlib import Path

_PROGRAM = "#include <libaio.h>\nint main() { return io_submit(0, 0, 0); }\n"
_COMPILE_S = 60.0


def libaio_fault() -> str | None:
    """What is missing, in words; None where the operation is there or can be compiled."""
    if _is_built():
        return None
    compiler = os.environ.get("CXX", "c++")
    flags = [shlex.split(os.environ.get(name, "")) for name in ("CFLAGS", "LDFLAGS")]
    command = [compiler, "-x", "c++", "-", *flags[0], *flags[1], "-laio", "-o", os.devnull]
    try:
        done = subprocess.run(
            command, input=_PROGRAM, capture_output=True, text=True, timeout=_COMPILE_S, check=False
        )
    except OSError as error:
        return f"offloading to nvme compiles an operation, and there is no C++ compiler: {error}"
    except subprocess.TimeoutExpired:
        return f"offloading to nvme compiles an operation: {compiler} took over {_COMPILE_S:g} s"
    if done.returncode == 0:
        return None
    return (
        "offloading to nvme needs libaio with its headers: apt install libaio-dev, or on Red Hat "
        f"libaio-devel ({compiler} says: {(done.stderr.strip() or '?').splitlines()[0]})"
    )


def _is_built() -> bool:
    """Whether DeepSpeed was installed with `DS_BUILD_AIO=1`."""
    spec = importlib.util.find_spec("deepspeed")
    folders = (spec.submodule_search_locations if spec else None) or []
    return any(path for folder in folders for path in Path(folder).glob("ops/aio/async_io_op*.so"))
