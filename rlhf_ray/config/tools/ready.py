"""Configurations as commands name them: a file, or one of those that come with the package.

For example `find_config("grpo", "tiny-cpu")`. `rlhf_ray/configs` is a link to the repository's
`configs/`, whose files a wheel holds in its place.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from rlhf_ray.config.jobs import JOB_CONFIGS, PIPELINE, PipelineConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.tools.load import load_config, validate
from rlhf_ray.config.tools.yaml_file import read_yaml
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


def load_job(given: str, job: str = "", arguments: Sequence[str] = ()) -> RunConfig:
    """Read a file or a ready configuration as what it is, where `job` does not say it.

    A pipeline has stages; a job is in a folder of its name.

    Raises:
        ConfigError: It cannot be told what it is, or it has a mistake.
    """
    path = find_config(job, given) if job else _found(given)
    file = read_yaml(path)
    if job == PIPELINE or (not job and "stages" in file.values):
        return load_config(PipelineConfig, path, arguments)
    folder = path.resolve().parent.name
    fitting = [name for name, cls in JOB_CONFIGS.items() if validate(cls, file)[0] is not None]
    named = job or (folder if folder in JOB_CONFIGS else fitting[0] if len(fitting) == 1 else "")
    if named not in JOB_CONFIGS:
        raise ConfigError(
            f"{path} may configure {' or '.join(fitting) or 'no job'}: say which by --job, "
            f"one of {', '.join(JOB_CONFIGS)}, {PIPELINE}"
        )
    return load_config(JOB_CONFIGS[named], path, arguments)


def _found(given: str) -> Path:
    """The file, or the ready configuration whose job its name tells.

    Raises:
        ConfigError: None has this name, or several.
    """
    having = [job for job in (*JOB_CONFIGS, PIPELINE) if given in ready_configs(job)]
    file = file_there(given)
    if file is None and not having:
        raise ConfigError(f"{given}: no such configuration file, and no ready configuration")
    if file is None and len(having) > 1:
        raise ConfigError(f"{given} is ready for {', '.join(having)}: say which by --job")
    return file or find_config(having[0], given)
