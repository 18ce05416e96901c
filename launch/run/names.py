"""What a user may call a job or a pool: names become files, namespaces and addresses."""

from __future__ import annotations

import re

from rlhf_ray.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def check_name(option: str, name: str) -> None:
    """Accept what is safe as the name of a file.

    Raises:
        ConfigError: It is not; says which option gave it.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{option} must be of letters, digits, - _ and ., got {name!r}")
