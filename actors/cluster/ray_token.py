"""The token of clusters that ask for one: shown where this machine has it, and only when asked."""

from __future__ import annotations

import os

from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

NO_TOKEN = (
    "it asks for a token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or copy the head's "
    "~/.ray/auth_token here"
)


def use_token_at_hand() -> bool:
    """Have Ray show this machine's token from now on.

    `ray start --head` asks for a token as soon as there is one; whoever connects shows it only
    where `RAY_AUTH_MODE` says so. Must come before this process connects to any cluster.

    Returns:
        Whether there is a token, and nobody has decided yet whether it is shown.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return False
    if not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        return False
    os.environ["RAY_AUTH_MODE"] = "token"
    Config.initialize("")  # Ray read the environment when it was imported
    return True
