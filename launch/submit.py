"""The command `rlhf-ray submit JOB CONFIG --address URL`: a job on a cluster elsewhere.

The configuration is read and checked here, `${VARIABLES}` included, so that a mistake is known at
once and what was checked is what runs. Its paths are the cluster's and are checked there.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import cli
from launch.jobs import STOP_S, add_address, address_or_default, watch
from launch.package import find_missing, shipped_files, write_package
from launch.run.names import check_name
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.tools.load import find_config, load_config
from rlhf_ray.config.tools.problems import raise_for
from rlhf_ray.config.tools.stages import values_of
from rlhf_ray.errors import ConfigError, RunError

if TYPE_CHECKING:
    from actors.jobs.api import JobsApi
    from actors.jobs.payload import Payload

_VARIABLE = re.compile(r"[A-Za-z_]\w*")
# The worker that runs this shell was started by the raylet, which knows the interpreter of its
# installation; no environment has to be activated, and `python` need not be on the path.
ENTRYPOINT = (
    "raylet=$(awk '/^PPid:/ {print $2}' /proc/$PPID/status); "
    "python=$(tr '\\0' '\\n' < /proc/$raylet/cmdline | "
    "sed -n 's/^--python_worker_command=\\([^ ]*\\).*/\\1/p'); "
    'exec "${python:-python3}" -m launch.submitted '
)

_EPILOG = """\
Any key of the configuration can be given as well: --policy.optim.lr 1e-6

${VARIABLES} in CONFIG are replaced here, before anything is sent; --env NAME=VALUE counts.
A run without --run-dir goes to ~/runs/NAME on the node of the driver, the head.

The values of --env reach the driver and all actors. They pass through the head's memory, for ten
minutes at most, and are in no file, log or record of Ray's. Whoever can reach the cluster can run
code on it, and so could look for them there.

exit status: the job's own (0 finished, 1 failed, 2 bad input, 130 stopped). Ctrl-C ends the
following, not the job.
"""


def main(arguments: Sequence[str]) -> int:
    """Submit a job and follow it; returns its exit status.

    Raises:
        ConfigError: The configuration, the folder, the name or the address is wrong.
        RunError: The cluster stopped answering.
    """
    options, overrides = parser().parse_known_args(arguments)
    variables = _variables(options.env, os.environ)
    os.environ.update(variables)
    file = find_config(options.job, options.config)
    config = load_config(cli.CONFIGURED[options.job], file, overrides, elsewhere=True)
    name = options.name or Path(cli.default_run_dir(options.job, file)).name
    check_name("--name", name)
    values = values_of(config) | {"run_dir": _run_dir(config, name)}
    files = None if options.working_dir is None else shipped_files(options.working_dir)
    raise_for(find_missing(values, files), source=options.config)
    address = address_or_default(options.address)

    from actors.jobs.api import check_version, open_api
    from actors.jobs.payload import Payload

    api = open_api(address)
    check_version(api)
    if api.info(name) is not None:
        raise ConfigError(f"--name: the cluster has had a job {name!r}: take another name")
    payload = Payload(job=options.job, values=values, variables=variables)
    _send(api, name, payload, options, files or [])
    print(f"submitted {name} to {address}", file=sys.stderr)
    if options.no_wait:
        print(name)
        return 0
    return watch(api, name, address)


def parser() -> ArgumentParser:
    """What the command line takes, beside the configuration's own keys."""
    parser = ArgumentParser(
        prog="rlhf-ray submit",
        description="Run a job on a Ray cluster elsewhere, and follow its log.",
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("job", choices=cli.CONFIGURED)
    parser.add_argument(
        "config", help="the job's configuration: a YAML file, or a ready one by its name"
    )
    add_address(parser)
    parser.add_argument("--name", default="", help="of the job (default: JOB-CONFIG-TIME)")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable of this environment, or a new one, for driver and actors; repeatable",
    )
    parser.add_argument(
        "--working-dir",
        type=lambda text: Path(text).expanduser(),
        metavar="DIR",
        help="send this folder along, for reward functions and small data; the job runs in it",
    )
    parser.add_argument(
        cli.VERBOSE, action="store_true", help="have libraries and actors write to the job's log"
    )
    parser.add_argument("--no-wait", action="store_true", help="print the name and leave")
    return parser


def _variables(given: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """What `--env` names.

    Raises:
        ConfigError: One is not set here, or is no name.
    """
    variables = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(f"--env takes NAME or NAME=VALUE, got the name {name!r}")
        if not equals and name not in environment:
            raise ConfigError(f"--env {name}: no such variable is set here; give {name}=VALUE")
        variables[name] = value if equals else environment[name]
    return variables


def _run_dir(config: RunConfig, name: str) -> str:
    """Where the run goes on the cluster.

    Raises:
        ConfigError: It is relative to a folder of this machine.
    """
    if config.run_dir and not config.run_dir.startswith(("/", "~")):
        raise ConfigError(
            f"run_dir must be a folder of the cluster, such as /mnt/shared/runs/first, got "
            f"{config.run_dir!r}"
        )
    return config.run_dir or f"~/runs/{name}"


def _send(
    api: JobsApi, name: str, payload: Payload, options: Namespace, files: Sequence[str]
) -> None:
    """Upload what belongs to the job, and start it.

    Raises:
        ConfigError: The name was taken meanwhile.
        RunError: The cluster refuses.
    """
    from actors.jobs.payload import send

    environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}}
    metadata = {"job": payload.job, "run": name, "run_dir": payload.values["run_dir"]}
    verbose = f" {cli.VERBOSE}" if options.verbose else ""
    with tempfile.TemporaryDirectory() as temporary:
        if options.working_dir is not None:
            archive = Path(temporary) / "package.zip"
            write_package(options.working_dir, files, archive)
            environment["working_dir"] = str(archive)
        try:
            api.submit_job(
                # Logs and dashboard show this from its beginning; the shell skips to the `;`.
                entrypoint=f": rlhf-ray {payload.job}; {ENTRYPOINT}{send(api, payload)}{verbose}",
                submission_id=name,
                runtime_env=environment,
                metadata=metadata,
            )
        except (RunError, RuntimeError) as error:
            if "already exists" in str(error):
                raise ConfigError(f"--name: the cluster has had a job {name!r}") from error
            raise RunError(f"the cluster refuses the job: {error}") from error
