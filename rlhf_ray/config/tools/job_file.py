"""A configuration file whose job is not said: a pipeline's or a job's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_ray.config.jobs import JOB_CONFIGS, PIPELINE
from rlhf_ray.config.pipeline import PipelineConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.tools.load import load_config, validate
from rlhf_ray.config.tools.ready import file_there, find_config, ready_configs
from rlhf_ray.config.tools.yaml_file import read_yaml
from rlhf_ray.errors import ConfigError


def load_job(given: str, job: str = "", arguments: Sequence[str] = ()) -> RunConfig:
    """Read a file as what it is: a pipeline has stages, a job is in a folder of its name.

    Args:
        given: The file, or a ready configuration's name.
        job: Its job, where it is known.
        arguments: As of the command line.

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
