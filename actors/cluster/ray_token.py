"""Tokens of clusters: of those that ask for one, and of those that this project starts."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

NO_TOKEN = (
    "it asks for a token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or copy the head's "
    "~/.ray/auth_token here"
)


def use_own_token() -> None:
    """Have the cluster that this process starts next ask for a token that nobody else has.

    Without one at hand Ray would write one to the user's home, where every later `ray start --head`
    finds it and asks the other nodes for it.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or _is_token_at_hand():
        return
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    _read_environment()


def use_token_in(file: Path) -> None:
    """Have Ray show the token in a file, unless the user has set how Ray does that.

    Must come before this process connects to any cluster.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(file))
    _read_environment()


def use_token_at_hand() -> bool:
    """Have Ray show this machine's token from now on.

    `ray start --head` asks for a token as soon as there is one; whoever connects shows it only
    where `RAY_AUTH_MODE` says so. Must come before this process connects to any cluster.

    Returns:
        Whether there is a token, and nobody has decided yet whether it is shown.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return False
    if not _is_token_at_hand():
        return False
    os.environ["RAY_AUTH_MODE"] = "token"
    _read_environment()
    return True


def _is_token_at_hand() -> bool:
    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def _read_environment() -> None:
    """Ray did when it was imported."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
