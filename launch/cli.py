"""The command `rlhf-ray JOB CONFIG [--key value ...]`.

Parsing and checking import neither torch nor Ray, so that help and mistakes answer at once; the
job's own module is imported last.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType

from launch.run.folder import check_folder
from launch.run.messages import libraries_to_file, show_everything, show_own_logs
from launch.run.signals import exit_when_stopped, interrupt_when_stopped
from rlhf_ray.config.checks.preflight import preflight
from rlhf_ray.config.checks.unused import warn_of_unused
from rlhf_ray.config.jobs import JOB_CONFIGS, PIPELINE, PipelineConfig
from rlhf_ray.config.run import JobConfig, RunConfig
from rlhf_ray.config.tools.load import find_config, load_config, ready_configs
from rlhf_ray.config.tools.schema import help_text, summary_of
from rlhf_ray.config.tools.stages import Stage, stages_of
from rlhf_ray.errors import (
    EXIT_CONFIG,
    EXIT_INTERRUPTED,
    EXIT_RUN,
    EXIT_TRAINING,
    ConfigError,
    RlhfRayError,
    TrainingStopped,
)
from rlhf_ray.jobs.status import state_of

logger = logging.getLogger(__name__)

# What takes a configuration file.
CONFIGURED: Mapping[str, type[RunConfig]] = {**JOB_CONFIGS, PIPELINE: PipelineConfig}
# What has arguments of its own: a module of `launch` with a `main`.
COMMANDS: Mapping[str, str] = {
    "plan": "What a job needs, where it goes, and what to change where it does not fit.",
    "data": "A job's rows before it runs: how they are read, counts, lengths, trained tokens.",
    "submit": "Run a job on a Ray cluster elsewhere: `submit JOB CONFIG --address http://HEAD:8265`.",
    "jobs": "Submitted jobs: `jobs list`, `jobs logs NAME`, `jobs stop NAME`.",
    "trace": "What every process of a run did when, for Perfetto: `trace RUN_DIR`.",
    "pool": "Actors that outlive the jobs they serve: `pool up FILE`, `pool status`, `pool down`.",
}

VERBOSE = "--verbose"
RESTARTS = "--restarts"

_HELP = """\
usage: rlhf-ray JOB CONFIG [--key value ...]

jobs:
{jobs}

commands:
{commands}

CONFIG is a YAML file, or the name of a ready configuration: rlhf-ray grpo tiny-cpu

  rlhf-ray JOB --help    every key of a job, with its type and default
  rlhf-ray --version     the version

options of every job:
  --seed N               seed of data order, sampling and initial heads
  --run-dir DIR          folder of the run (default: runs/JOB-CONFIG-TIME)
  --resume auto          go on from the last checkpoint in --run-dir
  --restarts N           start again, up to N times, what crashed or hangs; implies --resume auto
  --verbose              show what libraries and actors write (default: RUN-DIR/logs/driver.log)

Any other key of the configuration can be given as well: --policy.optim.lr 1e-6
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status, see `rlhf_ray.errors`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _dispatch(arguments))


def guarded(work: Callable[[], int]) -> int:
    """Do a command's work; returns its exit status, and tells of known errors in their words."""
    try:
        interrupt_when_stopped()
        show_own_logs()
        return work()
    except ConfigError as error:
        return _fail(error, EXIT_CONFIG)
    except TrainingStopped as error:
        return _fail(error, EXIT_TRAINING)
    except RlhfRayError as error:
        return _fail(error, EXIT_RUN)
    except KeyboardInterrupt:
        # What the loop was about to ask for, when Python clears up.
        warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `rlhf-ray ppo --help | head`; Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_RUN


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        jobs = "\n".join(f"  {job:<9} {summary_of(cls)}" for job, cls in CONFIGURED.items())
        commands = "\n".join(f"  {name:<9} {summary}" for name, summary in COMMANDS.items())
        print(_HELP.format(jobs=jobs, commands=commands), end="")
        return 0 if arguments else EXIT_CONFIG
    if arguments[0] == "--version":
        print(importlib.metadata.version("rlhf-ray"))
        return 0
    job, *rest = arguments
    if job in COMMANDS:
        command: Callable[[Sequence[str]], int] = _module(job).main
        return command(rest)
    if job not in CONFIGURED:
        names = [*CONFIGURED, *COMMANDS]
        near = difflib.get_close_matches(job, names, n=1)
        meant = f", did you mean {near[0]}?" if near else ";"
        raise ConfigError(f"no job {job!r}{meant} jobs are {', '.join(names)}")
    if "-h" in rest or "--help" in rest:
        _print_keys(job)
        return 0
    return _run_configured(job, rest)


def _run_configured(job: str, arguments: list[str]) -> int:
    """Read a job's command line and run the job."""
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(
            f"rlhf-ray {job} needs a configuration file, or the name of a ready one: "
            f"{', '.join(ready_configs(job))}"
        )
    if VERBOSE in arguments:
        show_everything()
        arguments = [argument for argument in arguments if argument != VERBOSE]
    restarts, arguments = restarts_of(arguments)
    config = _read(job, arguments[0], arguments[1:])
    if restarts is None:
        return check_and_run(config)
    return _run_guarded(config.model_copy(update={"resume": "auto"}), restarts)


def restarts_of(arguments: list[str]) -> tuple[int | None, list[str]]:
    """What `--restarts` says, if it is there, and the other arguments.

    Raises:
        ConfigError: It says no number.
    """
    given: str | None = None
    others: list[str] = []
    left = iter(arguments)
    for argument in left:
        name, equals, value = argument.partition("=")
        if name == RESTARTS:
            given = value if equals else next(left, "")
        else:
            others.append(argument)
    if given is not None and not given.isdecimal():
        raise ConfigError(f"{RESTARTS} must be an integer of at least 0, got {given!r}")
    return (None if given is None else int(given)), others


def _run_guarded(config: RunConfig, restarts: int) -> int:
    from launch.run.guard import Guard

    if isinstance(config, JobConfig) and config.trains and not config.checkpoint.every:
        logger.warning("checkpoint.every is 0: a run that is started again begins anew")
    guard = Guard(Path(config.run_dir), restarts=restarts, hang_s=config.timeouts.heartbeat_s)
    return guard.run(lambda: check_and_run(config))


def _read(job: str, given: str, overrides: Sequence[str]) -> RunConfig:
    """A configuration; its folder is absolute, because actors on other nodes work in other ones."""
    file = find_config(job, given)
    config = load_config(CONFIGURED[job], file, overrides)
    run_dir = os.path.abspath(config.run_dir or default_run_dir(job, file))
    return config.model_copy(update={"run_dir": run_dir})


def check_and_run(config: RunConfig) -> int:
    """Check what a configuration points at, then import what runs it, and run it.

    Raises:
        ConfigError: It points at something that is not there or does not fit, or its folder is
            another run's.
        RunError: The job failed.
    """
    with libraries_to_file():
        preflight(config)
        check_folder(config)
        warn_of_unused(config, "the job")
        run: Callable[[RunConfig], int] = _module("job").run
        try:
            return run(config)
        except KeyboardInterrupt:
            if state_of(config.run_dir) == "interrupted":
                how = f"--run-dir {config.run_dir} --resume auto"
                logger.info("to go on: the same command with %s", how)
            raise


def _module(name: str) -> ModuleType:
    with exit_when_stopped():
        return importlib.import_module(f"launch.{name}")


def read_stages(job: str, given: str, overrides: Sequence[str]) -> list[Stage]:
    """What a command looks at without running it: the job alone, or the pipeline's stages.

    Raises:
        ConfigError: The configuration has a mistake.
    """
    return stages_of(_read(job, given, overrides), check_files=False)


def default_run_dir(job: str, config: Path) -> str:
    """`runs/<job>-<config>-<time>`, for example `runs/ppo-tiny-cpu-20260314-150926`."""
    return f"runs/{job}-{config.stem}-{datetime.now():%Y%m%d-%H%M%S}"


def _print_keys(job: str) -> None:
    width = min(shutil.get_terminal_size().columns, 110)
    print(f"usage: rlhf-ray {job} CONFIG [--key value ...]\n")
    print("A key given here wins over CONFIG; - and _ are alike in its name.")
    print(f"{VERBOSE} shows what libraries and actors write as well;")
    print(f"{RESTARTS} N starts again, up to N times, what crashed or hangs.")
    print(help_text(CONFIGURED[job], width=width))


def _fail(error: Exception, status: int) -> int:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(f"error: {error}", style="red"), soft_wrap=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
