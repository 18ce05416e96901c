"""Is there a login for W&B? Asked before anything starts, without importing W&B."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

# Any of these is a login to W&B itself.
_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


def login_fault(environment: Mapping[str, str] = os.environ) -> str | None:
    """None where there is a login, else what to do."""
    if any(environment.get(key) for key in _KEYS):
        return None
    host = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    if host in _netrc_hosts(environment):
        return None
    return (
        f"'online' needs a login to {host}: set WANDB_API_KEY, run `wandb login`, or set "
        "wandb.mode to 'offline'"
    )


def _netrc_hosts(environment: Mapping[str, str]) -> set[str]:
    """The machines whose logins `wandb login` and others have noted."""
    home = Path.home()
    named = environment.get("NETRC")
    for path in [Path(named).expanduser()] if named else [home / ".netrc", home / "_netrc"]:
        try:
            return set(netrc.netrc(path).hosts)
        except (OSError, netrc.NetrcParseError):  # W&B would find nothing in it either
            continue
    return set()
