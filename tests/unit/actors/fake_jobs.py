"""A cluster's job API that is played."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from ray.job_submission import JobStatus

from actors.jobs.log import FollowedJobs

SILENCE = object()


@dataclass
class Said:
    status: JobStatus
    driver_exit_code: int | None = None


class Played:
    """Every connection tells the log from its beginning: texts, silence, or an error."""

    def __init__(self, connections: list[list[Any]], statuses: list[Any]) -> None:
        self.connections, self.statuses = connections, statuses

    def info(self, job_id: str) -> Any:
        said = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if isinstance(said, Exception):
            raise said
        return said

    def get_job_logs(self, job_id: str) -> str:
        return "a\nwhole\n"

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for piece in self.connections.pop(0):
            if piece is SILENCE:
                await asyncio.sleep(60)
            elif isinstance(piece, Exception):
                raise piece
            else:
                yield piece


def _(fake: Played) -> FollowedJobs:
    return fake
