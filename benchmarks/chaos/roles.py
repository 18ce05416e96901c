"""Which processes of a command are which role's, as an operator sees them: by their titles."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from rlhf_ray.jobs.status import read_status

DRIVER = "driver"
# Ray gives an actor's process the name of its class.
ROLES: Mapping[str, str] = {
    "PolicyRank": "policy",
    "ValueRank": "value",
    "ReferenceRank": "reference",
    "RewardWorker": "reward_worker",
    "ExperienceRank": "experience",
    "RolloutReplica": "rollout",
}


def role_of(title: str) -> str | None:
    """The role of an actor by its process's title, as `ray::PolicyRank.update`."""
    kind, _, name = title.partition("::")
    return ROLES.get(name.partition(".")[0]) if kind == "ray" else None


def processes_of(command: psutil.Process, run_dir: Path) -> dict[str, list[psutil.Process]]:
    """Those below a command that may die, by their roles."""
    found: dict[str, list[psutil.Process]] = {}
    driver = read_status(run_dir).get("process")
    for process in command.children(recursive=True):
        with suppress(psutil.Error):
            title = (process.cmdline() or [""])[0]
            role = DRIVER if process.pid == driver else role_of(title)
            if role is not None and process.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(role, []).append(process)
    return found


def one_of(
    processes: Mapping[str, list[psutil.Process]], chance: random.Random
) -> tuple[str, psutil.Process]:
    """A role of those that are there, each as likely as another, and one of its processes."""
    role = chance.choice(sorted(processes))
    return role, chance.choice(sorted(processes[role], key=lambda process: process.pid))
