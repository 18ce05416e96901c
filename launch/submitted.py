"""A submitted job's driver, on the cluster: `python -m launch.submitted PAYLOAD [--verbose]`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launch import cli
from launch.run.messages import show_everything
from rlhf_ray.config.tools.load import validate
from rlhf_ray.config.tools.problems import raise_for
from rlhf_ray.config.tools.yaml_file import YamlFile


def run(name: str, options: Sequence[str]) -> int:
    """Take a job's payload and run the job on the cluster that this process belongs to.

    Raises:
        ConfigError: The payload is gone, or this installation cannot read it.
        RunError: The job failed.
    """
    from actors.jobs.payload import receive
    from actors.pool.processes import FORWARDED

    if cli.VERBOSE in options:
        show_everything()
    payload = receive(name, os.environ["RAY_ADDRESS"])
    os.environ.update(payload.variables)
    os.environ[FORWARDED] = ",".join(payload.variables)
    # Where no environment is activated: what an installation brings (ninja, for one) is found.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    file = YamlFile(values=dict(payload.values), lines={}, problems=())
    config, problems = validate(cli.CONFIGURED[payload.job], file)
    raise_for(problems, source=f"submitted {payload.job}")
    assert config is not None
    return cli.check_and_run(config)


if __name__ == "__main__":
    sys.exit(cli.guarded(lambda: run(sys.argv[1], sys.argv[2:])))
