"""The commands `rlhf-ray jobs list|logs|stop`: what was submitted to a cluster."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rlhf_ray.errors import EXIT_INTERRUPTED, ConfigError, RunError

if TYPE_CHECKING:
    from actors.jobs.api import JobsApi

# Between Ray's SIGTERM and its SIGKILL: the actors are ended meanwhile.
STOP_S = 60
# Ray's record of it comes a moment later.
ENDED_S = STOP_S + 30.0
POLL_S = 0.5


def main(arguments: Sequence[str]) -> int:
    """Run one of the three commands; returns the exit status.

    Raises:
        ConfigError: There is no such cluster or no such job.
        RunError: The cluster stopped answering, or a job does not stop.
    """
    given = parser().parse_args(arguments)
    address = address_or_default(given.address)

    from actors.jobs.api import open_api

    api = open_api(address)
    if given.command == "list":
        return show(api)
    if given.command == "stop":
        return stop(api, given.name)
    if given.follow:
        return watch(api, given.name, address)
    _known(api, given.name)
    print(api.get_job_logs(given.name), end="")
    return 0


def parser() -> ArgumentParser:
    """What the command line takes."""
    parser = ArgumentParser(prog="rlhf-ray jobs", description="Jobs that were submitted.")
    commands = parser.add_subparsers(dest="command", required=True)
    listed = commands.add_parser("list", help="all of them, and how they are")
    logs = commands.add_parser("logs", help="what a job said")
    logs.add_argument("name", metavar="NAME")
    logs.add_argument("--follow", action="store_true", help="to its end, with its exit status")
    stopped = commands.add_parser("stop", help="end a job, its actors and their processes")
    stopped.add_argument("name", metavar="NAME")
    for command in (listed, logs, stopped):
        add_address(command)
    return parser


def show(api: JobsApi) -> int:
    """One line a job, the newest last."""
    from rich.table import Table

    from launch.tables.format import screen

    table = Table()
    table.add_column("name", no_wrap=True)
    for column in ("job", "state", "since", "run directory"):
        table.add_column(column, overflow="fold")
    jobs = [job for job in api.list_jobs() if job.submission_id]
    for job in sorted(jobs, key=lambda job: job.start_time or 0):
        metadata = job.metadata or {}
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime((job.start_time or 0) / 1000))
        table.add_row(
            job.submission_id,
            metadata.get("job", ""),
            job.status.lower(),
            since,
            metadata.get("run_dir", ""),
        )
    screen().print(table if jobs else "no job was submitted to this cluster")
    return 0


def stop(api: JobsApi, name: str) -> int:
    """End a job and wait until it has ended.

    Raises:
        ConfigError: There is no such job.
        RunError: It does not stop.
    """
    info = _known(api, name)
    if info.status.is_terminal():
        print(f"{name}: {info.status.lower()} already")
        return 0
    api.stop_job(name)
    give_up_s = time.monotonic() + ENDED_S
    while not info.status.is_terminal():
        if time.monotonic() > give_up_s:
            raise RunError(f"{name} has not stopped after {ENDED_S:.0f} s")
        time.sleep(POLL_S)
        info = _known(api, name)
    print(f"{name}: {info.status.lower()}")
    return 0


def _known(api: JobsApi, name: str) -> Any:
    info = api.info(name)
    if info is None:
        raise ConfigError(f"the cluster knows no job {name!r}; `rlhf-ray jobs list` shows all")
    return info


def add_address(parser: ArgumentParser) -> None:
    """The option that all commands about submitted jobs have."""
    parser.add_argument(
        "--address",
        default="",
        metavar="URL",
        help="of the dashboard, http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS)",
    )


def address_or_default(given: str) -> str:
    """Where the cluster is.

    Raises:
        ConfigError: Nobody says.
    """
    environment = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not (given or environment):
        raise ConfigError(
            "which cluster? Give --address http://HEAD:8265, or RAY_API_SERVER_ADDRESS"
        )
    return given or environment or ""


def watch(api: JobsApi, name: str, address: str) -> int:
    """Follow a job to its end; returns its exit status, or 130 where the user stops looking."""
    from actors.jobs.log import exit_status, follow

    try:
        info = asyncio.run(follow(api, name, partial(print, end="", flush=True)))
    except KeyboardInterrupt:
        print(
            f"\n{name} goes on. Follow it: rlhf-ray jobs logs {name} --follow --address {address}\n"
            f"Stop it: rlhf-ray jobs stop {name} --address {address}",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    why = f" ({info.message})" if info.driver_exit_code is None and info.message else ""
    print(f"{name}: {info.status.lower()}{why}", file=sys.stderr)
    return exit_status(info)
