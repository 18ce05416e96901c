"""What the commands about submitted jobs share: where the cluster is, and watching a job."""

from __future__ import annotations

import asyncio
import os
import sys
from argparse import ArgumentParser
from typing import TYPE_CHECKING

from rlhf_ray.errors import EXIT_INTERRUPTED, ConfigError

if TYPE_CHECKING:
    from actors.jobs.api import JobsApi


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
        info = asyncio.run(follow(api, name, _show))
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


def _show(text: str) -> None:
    print(text, end="", flush=True)
