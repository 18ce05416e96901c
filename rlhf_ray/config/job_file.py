"""A configuration file whose job is not said: a pipeline's or a job's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_ray.config.base import RunConfig
from rlhf_ray.config.jobs import JOBS
from rlhf_ray.config.load import load_config, validate
from rlhf_ray.config.pipeline import PipelineConfig
from rlhf_ray.config.yaml_file import read_yaml
from rlhf_ray.errors import ConfigError


def load_job(path: str, job: str = "", arguments: Sequence[str] = ()) -> RunConfig:
    """Read a file as what it is: a pipeline has stages, a job is in a folder of its name.

    Args:
        path: Of the file.
        job: Its job, where it is known.
        arguments: As of the command line.

    Raises:
        ConfigError: It cannot be told what it is, or it has a mistake.
    """
    file = read_yaml(Path(path).expanduser())
    if job == "pipeline" or (not job and "stages" in file.values):
        return load_config(PipelineConfig, path, arguments)
    folder = Path(path).resolve().parent.name
    fitting = [name for name, cls in JOBS.items() if validate(cls, file)[0] is not None]
    named = job or (folder if folder in JOBS else fitting[0] if len(fitting) == 1 else "")
    if named not in JOBS:
        raise ConfigError(
            f"{path} may configure {' or '.join(fitting) or 'no job'}: say which by --job, "
            f"one of {', '.join(JOBS)}, pipeline"
        )
    return load_config(JOBS[named], path, arguments)
