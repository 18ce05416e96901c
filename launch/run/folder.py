"""The folder of a run: its configuration, and a status that never looks finished when it is not."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.run.signals import told_when_stopped
from rlhf_ray.config.base import STATUS_FILE, RunConfig
from rlhf_ray.config.load import dump_config, is_dump_of
from rlhf_ray.config.sample import SampleConfig


@contextmanager
def run_folder(config: RunConfig) -> Iterator[Path]:
    """Write `config.yaml`, and `status.json`: running, then finished, interrupted or failed."""
    folder = Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    dump_config(config, folder / "config.yaml")
    _write(folder, "running", "")
    try:
        with told_when_stopped(lambda: _write(folder, "interrupted", "")):
            yield folder
    except (KeyboardInterrupt, asyncio.CancelledError):
        _write(folder, "interrupted", "")
        raise
    except BaseException as error:
        _write(folder, "failed", f"{type(error).__name__}: {error}")
        raise
    _write(folder, "finished", "")


def state_of(run_dir: str) -> str:
    """What `status.json` says of a run; empty where there is none."""
    path = Path(run_dir) / STATUS_FILE
    return str(json.loads(path.read_text())["state"]) if path.is_file() else ""


def is_finished(config: RunConfig) -> bool:
    """Whether the folder holds this very run, whole, and it may go on there."""
    if config.resume == "never" or state_of(config.run_dir) != "finished":
        return False
    folder = Path(config.run_dir)
    has_result = isinstance(config, SampleConfig) or (folder / "export").is_dir()
    return has_result and is_dump_of(config, folder / "config.yaml", besides={"resume"})


def _write(folder: Path, state: str, reason: str) -> None:
    temporary = folder / f".{STATUS_FILE}"
    temporary.write_text(json.dumps({"state": state, "reason": reason, "process": os.getpid()}))
    temporary.replace(folder / STATUS_FILE)
