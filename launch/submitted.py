"""The driver of a submitted job, on the cluster: `python -m launch.submitted PARCEL`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launch import cli
from rlhf_ray.config.tools.load import validate
from rlhf_ray.config.tools.problems import raise_for
from rlhf_ray.config.tools.yaml_file import YamlFile


def run(name: str) -> int:
    """Take a job's parcel and run the job on the cluster that this process belongs to.

    Raises:
        ConfigError: The parcel is gone, or this installation cannot read it.
        RunError: The job failed.
    """
    from actors.jobs.parcel import receive
    from actors.pool.processes import FORWARDED

    parcel = receive(name, os.environ["RAY_ADDRESS"])
    os.environ.update(parcel.variables)
    os.environ[FORWARDED] = ",".join(parcel.variables)
    # Where no environment is activated: what an installation brings (ninja, for one) is found.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    file = YamlFile(values=dict(parcel.values), lines={}, problems=())
    config, problems = validate(cli.CONFIGURED[parcel.job], file)
    raise_for(problems, source=f"submitted {parcel.job}")
    assert config is not None
    return cli.run_job(parcel.job, config)


if __name__ == "__main__":
    sys.exit(cli.guarded(lambda: run(sys.argv[1])))
