"""Rows that a program makes: tasks of reasoning-gym by their names, as a file that is kept.

Example: `reasoning_gym:countdown,size=2000,seed=1`; other settings are the task's own, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlhf_ray.config.checks.data_files import GENERATED
from rlhf_ray.errors import DataError

# Prompts of a task, where the path does not say how many.
DEFAULT_SIZE = 1000


def generated_file(path: str) -> Path:
    """The JSON lines of a task, made where they are not there yet.

    Raises:
        ConfigError: reasoning-gym is not installed, or there is no such task or setting.
        DataError: The path cannot be read.
    """
    from rlhf_ray.rewards.reasoning_gym import rows

    task, settings = _parsed(path)
    size, seed = settings.pop("size", DEFAULT_SIZE), settings.pop("seed", 0)
    for name, number in (("size", size), ("seed", seed)):
        if not isinstance(number, int) or number < (name == "size"):
            raise DataError(f"{path!r}: {name} must be a whole number, got {number!r}")
    try:
        made_by = version("reasoning-gym")
    except PackageNotFoundError:
        made_by = ""
    digest = hashlib.sha256(f"{made_by} {path}".encode()).hexdigest()[:16]
    root = Path(os.environ.get("RLHF_RAY_CACHE") or "~/.cache/rlhf-ray").expanduser()
    file = root / "generated" / digest / f"{task}.jsonl"
    if not file.exists():
        made = rows(task, size=size, seed=seed, **settings)
        _write(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made))
    return file


def _parsed(path: str) -> tuple[str, dict[str, Any]]:
    task, *parts = path.removeprefix(GENERATED).split(",")
    settings = {}
    for part in parts:
        name, equals, text = part.partition("=")
        try:
            settings[name] = json.loads(text)
        except ValueError:
            settings[name] = text
        if not (name.isidentifier() and equals):
            raise DataError(f"{path!r}: {part!r} must be name=value")
    if not task:
        raise DataError(f"{path!r} must name a task: {GENERATED}countdown")
    return task, settings


def _write(file: Path, text: str) -> None:
    """Whole or not at all: jobs may start side by side."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent)
    with open(handle, "w", encoding="utf-8") as written:
        written.write(text)
    Path(name).replace(file)
