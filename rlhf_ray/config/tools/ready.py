"""Configurations as commands name them: a file, or one of those that come with the package.

For example `find_config("grpo", "tiny-cpu")`. `rlhf_ray/configs` is a link to the repository's
`configs/`, whose files a wheel holds in its place.
"""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path

from rlhf_ray.errors import ConfigError

SUFFIX = ".yaml"


def ready_configs(job: str) -> dict[str, Path]:
    """The files of a job's ready configurations by their names."""
    folder = Path(str(files("rlhf_ray"))) / "configs" / job
    return {path.name.removesuffix(SUFFIX): path for path in sorted(folder.glob(f"*{SUFFIX}"))}


def file_there(given: str) -> Path | None:
    """What can be read at a path; a folder cannot."""
    file = Path(given).expanduser()
    return file if file.exists() and not file.is_dir() else None


def find_config(job: str, given: str) -> Path:
    """The file that `given` is: one that is there, else the job's ready configuration of that name.

    Raises:
        ConfigError: It is neither.
    """
    file, ready = file_there(given), ready_configs(job)
    if file is None and given not in ready:
        raise ConfigError(f"{given}: {_what_is_there(given, job, ready)}")
    return file or ready[given]


def _what_is_there(given: str, job: str, ready: dict[str, Path]) -> str:
    name = Path(given).name.removesuffix(SUFFIX)
    near = difflib.get_close_matches(name, ready, n=1)
    meant = f", did you mean {near[0]}?" if near else ";"
    return (
        f"no such configuration file, and no ready configuration of {job}{meant} "
        f"ready are {', '.join(ready)}"
    )
