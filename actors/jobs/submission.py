"""The submission that this driver belongs to, if Ray's job API has started it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace

from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.dashboard.modules.job.common import JobInfoStorageClient
from ray.exceptions import RayError

logger = logging.getLogger(__name__)

# Ray hands the submission's settings to its driver in this variable.
_SETTINGS = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def is_submitted() -> bool:
    """Whether `rlhf-ray submit`, `ray job submit` or the like has started this process."""
    return _SETTINGS in os.environ


def describe_submission(metadata: Mapping[str, str]) -> None:
    """Add to what Ray's dashboard shows of this driver's submission; nothing where it has none.

    The driver's own metadata, given to `ray.init`, are not shown there.
    """
    settings = json.loads(os.environ.get(_SETTINGS, "{}"))
    name = settings.get("metadata", {}).get("job_submission_id")
    if not name:
        return
    try:
        asyncio.run(_add(name, metadata))
    except (RayError, OSError) as error:  # the job can do without
        logger.warning("Ray's dashboard will not show what this run is: %s", error)


async def _add(name: str, metadata: Mapping[str, str]) -> None:
    records = JobInfoStorageClient(GcsClient(address=os.environ["RAY_ADDRESS"]))
    info = await records.get_info(name)
    if info is not None:
        merged = {**(info.metadata or {}), **metadata}
        await records.put_info(name, replace(info, metadata=merged))
