"""What a submitted job gets past Ray's records: its configuration, and variables with secrets.

Ray shows and logs the command, the metadata and the runtime environment of a job, and unpacks its
package on every node's disk. The payload is in none of these: it lies in the memory of the head
until the job's driver takes it, once, or ten minutes have passed. Who can reach the cluster can run
any code on it, and so could read a payload as well.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ray._raylet import GcsClient  # type: ignore[attr-defined]

from actors.jobs.api import JobsApi
from rlhf_ray.errors import ConfigError

TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Payload:
    """One job.

    Attributes:
        job: Its name: `grpo`, for instance.
        values: Its configuration, as far as it differs from the defaults.
        variables: Of the environment, for the driver and all actors.
    """

    job: str
    values: Mapping[str, Any]
    variables: Mapping[str, str]


def send(api: JobsApi, payload: Payload) -> str:
    """Leave it at the head; returns the name by which the driver finds it.

    Raises:
        RunError: The cluster does not take it.
    """
    name = f"_ray_pkg_{secrets.token_hex(16)}.zip"  # Ray knows no other kind of name
    api.put_bytes(name, json.dumps(asdict(payload)).encode())
    return name


def receive(name: str, address: str) -> Payload:
    """Take it; nobody can a second time.

    Args:
        name: As `send` returned it.
        address: Of the head, `host:port`.

    Raises:
        ConfigError: It is not there any more.
    """
    head, key = GcsClient(address=address), f"gcs://{name}".encode()
    content = head.internal_kv_get(key, None, timeout=TIMEOUT_S)
    if content is None:
        raise ConfigError("the job's configuration is gone: it waited too long; submit it again")
    head.internal_kv_del(key, False, None, timeout=TIMEOUT_S)
    return Payload(**json.loads(content))
